"""Times the CUDA kernels and compares them with the CPU; a part of ``tools/gpu_check.py``.

The scene is that of the CPU's figures: an 800 x 1333 image, output 480 x 800, objects with sides
log-uniform in 12..800 pixels, D = 32. ``--small`` is a few calls on a small scene, for
compute-sanitizer.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time

import torch

from rdsnet import ops

STRIDE, DIMS = 4, 32


class Scene:
    """Random arguments of every operator, on one device."""

    def __init__(self, image, output, objects: int, device: str, dtype=torch.float32) -> None:
        g = torch.Generator().manual_seed(0)
        grid = [math.ceil(side / 32) * 32 // STRIDE for side in image]
        # Smooth, as pixel representations are: masks are blobs rather than noise.
        coarse = torch.randn(1, DIMS, *(max(2, cells // 8) for cells in grid), generator=g)
        psi = torch.nn.functional.interpolate(coarse, grid, mode="bicubic").to(dtype)
        phi = (torch.randn(objects, 2, DIMS, generator=g) / DIMS**0.5).to(dtype)
        largest = math.log(max(13.0, float(output[1])) / 12)
        sides = 12 * torch.exp(torch.rand(objects, 2, generator=g) * largest)
        centres = torch.rand(objects, 2, generator=g) * torch.tensor([output[1], output[0]])
        windows = torch.cat([centres - sides / 2, centres + sides / 2], dim=1).long()
        scale = torch.tensor([grid[1] / output[1], grid[0] / output[0]] * 2)
        self.psi, self.phi = psi.to(device), phi.to(device)
        self.windows, self.index = windows.to(device), torch.zeros(objects).long().to(device)
        self.grid_windows = (windows * scale).long().to(device)
        self.targets = (torch.rand(objects, *grid, generator=g) > 0.7).to(torch.uint8).to(device)
        self.target_index = torch.arange(objects).to(device)
        # The same windows in pixels of the image, and ground truth there.
        to_image = torch.tensor([image[1] / output[1], image[0] / output[0]] * 2)
        self.image_windows = (windows * to_image).long().to(device)
        self.image_masks = [(torch.rand(objects, *image, generator=g) > 0.7).to(device)]
        self.image_taps = [
            ops.resize_taps(side, side, cells, STRIDE, device=device)
            for side, cells in zip(image, grid)
        ]
        self.taps = [
            ops.resize_taps(*sizes, STRIDE, device=device) for sizes in zip(output, image, grid)
        ]

    def masks(self):
        return ops.assemble_masks(self.psi[0], self.phi, self.windows, *self.taps)

    def correlation(self):
        return ops.correlate(self.psi, self.phi, self.index, self.grid_windows)[0]

    def losses(self, psi=None, phi=None):
        return ops.mask_ohem_loss(
            self.psi if psi is None else psi,
            self.phi if phi is None else phi,
            self.index,
            self.grid_windows,
            self.targets,
            self.target_index,
        )

    def losses_at_pixels(self, psi=None, phi=None):
        return ops.mask_ohem_loss_at_pixels(
            self.psi if psi is None else psi,
            self.phi if phi is None else phi,
            self.index,
            self.image_windows,
            self.image_masks,
            self.target_index,
            *self.image_taps,
        )

    def training(self):
        """Losses, and the gradients of their sum by psi and phi."""
        return self._with_gradients(self.losses)

    def training_at_pixels(self):
        return self._with_gradients(self.losses_at_pixels)

    def _with_gradients(self, losses_of):
        psi, phi = self.psi.detach().requires_grad_(), self.phi.detach().requires_grad_()
        losses = losses_of(psi, phi)
        losses.sum().backward()
        return losses.detach(), psi.grad, phi.grad


def agreement(image, output, objects: int, devices=("cpu", "cuda")) -> dict[str, float]:
    """How far CPU and CUDA differ: sum of differences / sum of magnitudes, and mask pixels.

    Sums, as two pixels may be equally hard but for rounding: then either may be the one kept.
    """
    cpu, cuda = (Scene(image, output, objects, device) for device in devices)

    def difference(a, b) -> float:
        return float((a - b.cpu()).abs().sum() / a.abs().sum().clamp(min=1e-12))

    found = {"logits": difference(cpu.correlation(), cuda.correlation())}
    for name, a, b in zip(("losses", "d psi", "d phi"), cpu.training(), cuda.training()):
        found[name] = difference(a, b)
    at_pixels = zip(cpu.training_at_pixels(), cuda.training_at_pixels())
    for name, (a, b) in zip(("losses", "d psi", "d phi"), at_pixels):
        found[f"{name} at the pixels"] = difference(a, b)
    mine, theirs = cuda.masks().to("cpu"), cpu.masks()
    found["row maxima"] = difference(theirs.row_maxima, mine.row_maxima)
    found["column maxima"] = difference(theirs.column_maxima, mine.column_maxima)
    wrong = (mine.dense() != theirs.dense()).sum() / theirs.areas.sum().clamp(min=1)
    found["mask pixels, share of the foreground"] = float(wrong)
    return found


def kernel_milliseconds(function, rounds: int = 50) -> float:
    """Median time on the GPU, by events: launches and the wait for sizes are in it."""
    for _ in range(5):
        function()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def kernels_alone(function) -> float:
    """Sum of the times of the kernels of one call, in ms, as the profiler sees them."""
    from torch.profiler import ProfilerActivity, profile

    function()
    rounds = 20
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(rounds):
            function()
        torch.cuda.synchronize()
    total = sum(event.self_device_time_total for event in found.key_averages())
    return total / 1e3 / rounds


def host_milliseconds(function, rounds: int = 50) -> float:
    """Median time from the call to its result on the host."""
    times = []
    for _ in range(rounds + 5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[5:])


def timings(image, output, objects: int) -> list[dict]:
    """Each operator's times, with DESIGN's goals where there is one, in ms."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        scene = Scene(image, output, objects, "cuda", dtype)
        goals = {"assemble_masks": 0.2}
        for name, function in (
            ("correlate", scene.correlation),
            ("mask_ohem_loss", scene.losses),
            ("mask_ohem_loss, forward and backward", scene.training),
            ("mask_ohem_loss_at_pixels", scene.losses_at_pixels),
            ("mask_ohem_loss_at_pixels, forward and backward", scene.training_at_pixels),
            ("assemble_masks", scene.masks),
        ):
            rows.append(
                {
                    "what": name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "kernels_ms": kernels_alone(function),
                    "call_ms": kernel_milliseconds(function),
                    "goal_ms": goals.get(name),
                }
            )
        rows.append(
            {
                "what": "assemble_masks to RLE on the host",
                "dtype": str(dtype).removeprefix("torch."),
                "kernels_ms": None,
                "call_ms": host_milliseconds(lambda scene=scene: scene.masks().rle()),
                "goal_ms": 0.5,
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--small", action="store_true", help="a few calls, for compute-sanitizer")
    args = parser.parse_args()
    if not torch.cuda.is_available() or "cuda" not in ops.active_path():
        print(f"no GPU, or no CUDA kernels ({ops.active_path()})", file=sys.stderr)
        return 1
    if args.small:
        scene = Scene((96, 160), (130, 220), 9, "cuda")
        scene.training(), scene.training_at_pixels(), scene.masks().rle()
        torch.cuda.synchronize()
        return 0
    size = (800, 1333), (480, 800)
    print(
        json.dumps(
            {
                "agreement": {str(n): agreement(*size, n) for n in (1, 100)},
                "timings": {str(n): timings(*size, n) for n in (1, 100, 300)},
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
