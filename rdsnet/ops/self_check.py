"""Do the compiled operators compute what their definition in PyTorch says, on this machine?"""

from __future__ import annotations

import torch

from rdsnet import ops
from rdsnet.ops import reference

# float32 sums of 32 products of numbers around 1, in another order.
TOLERANCE = 1e-4


def largest_differences(device: str = "cpu", seed: int = 0) -> dict[str, float]:
    """Run every operator and its definition on random input.

    Returns:
        {operator: largest absolute difference}: of logits, of losses and their gradients, and of
        the row and column maxima (probabilities) of masks.
    """
    generator = torch.Generator().manual_seed(seed)
    images, objects, dims, height, width = 2, 12, 32, 24, 33

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    psi, phi = random(images, dims, height, width), random(objects, 2, dims)
    image_index = torch.randint(images, (objects,), generator=generator).to(device)
    corners = torch.rand(objects, 2, 2, generator=generator).sort(dim=1).values
    windows = (corners * torch.tensor([width + 1, height + 1])).long().flatten(1).to(device)
    targets = (random(objects, height, width) > 0).to(torch.uint8)
    target_index = torch.arange(objects, device=device)

    differences = {}
    given = (psi, phi, image_index, windows)
    logits = [module.correlate(*given)[0] for module in (ops, reference)]
    differences["correlate"] = _largest(*logits)

    output = 4 * height - 3, 4 * width - 2
    taps = [
        ops.resize_taps(size, size, cells, 4, device=device)
        for size, cells in zip(output, (height, width), strict=True)
    ]
    masks = [random(objects, *output) > 0 for _ in range(images)]
    for name, where in (
        ("mask_ohem_loss", (windows, targets, target_index)),
        ("mask_ohem_loss_at_pixels", (4 * windows, masks, target_index, *taps)),
    ):
        results = []
        for module in (ops, reference):
            leaves = psi.clone().requires_grad_(), phi.clone().requires_grad_()
            losses = getattr(module, name)(*leaves, image_index, *where, 1.0)
            losses.sum().backward()
            results.append((losses, *(leaf.grad for leaf in leaves)))
        differences[name] = max(map(_largest, *results))

    masks = [
        module.assemble_masks(psi[0], phi, 4 * windows, *taps, 0.4) for module in (ops, reference)
    ]
    differences["assemble_masks"] = max(
        _largest(*(getattr(mask, name) for mask in masks))
        for name in ("row_maxima", "column_maxima")
    )
    return differences


def _largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.detach() - b.detach()).abs().max().item() if a.numel() else 0.0
