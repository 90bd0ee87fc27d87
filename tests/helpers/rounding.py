"""Limits that follow from the arithmetic, and so hold on every processor.

Every operation gives its exact result times 1 + d with |d| <= u, the unit roundoff of its type. n
of them in a row change a result by a factor within 1 +- gamma(n), gamma(n) = n u / (1 - n u). A sum
of n products is therefore off by at most gamma(n) times the sum of their absolute values, in
whatever order a processor adds and whether it fuses multiplications with additions or not
(N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, 3.1).

Where both sides of a comparison can be computed in float64 they are: then torch's own 1e-7 lies as
far above what rounding does as below what a mistake would do.

The computed sum is also what exact arithmetic makes of factors that are moved by gamma(n) each.
For a network, whose limit nobody can write down, :func:`disturbed` moves its weights by so much:
as far as its results go then, rounding may carry them.

Numbers that are on file, made in float32 once and for all, are compared with float64, so that
nothing depends on the processor. They are off by what rounding does probably rather than by what it
may do at most: roundings go either way, and n of them add up as a random walk does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

# An exp, log or division of them is off by a few units; in roundings.
ELEMENTARY = 16


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of one operation: 2^-24 for float32, 2^-8 for bfloat16."""
    return torch.finfo(dtype).eps / 2


def gamma(operations: int, dtype: torch.dtype = torch.float32) -> float:
    """Largest relative error of so many operations in a row."""
    error = operations * unit_roundoff(dtype)
    assert error < 1, f"{operations} operations in {dtype} leave no digit"
    return error / (1 - error)


def probable(operations: int, dtype: torch.dtype = torch.float32) -> float:
    """Probable relative error of so many operations in a row."""
    return operations**0.5 * unit_roundoff(dtype)


def assert_within(found: Tensor, expected: Tensor, limit: Tensor | float, what: str = "") -> None:
    """Every number found lies within its limit of the one expected; NaN is expected by NaN."""
    assert found.shape == expected.shape, f"{what}: {found.shape}, expected {expected.shape}"
    found, expected = found.detach().double(), expected.detach().double()
    assert torch.equal(found.isnan(), expected.isnan()), f"{what}: NaN in other places"
    excess = ((found - expected).abs() - limit).nan_to_num(nan=0.0, posinf=torch.inf)
    if excess.numel() and excess.max() > 0:
        worst = excess.argmax()
        off = (found - expected).abs().flatten()[worst]
        limit = torch.as_tensor(limit).expand(excess.shape).flatten()[worst]
        raise AssertionError(f"{what}: off by {off:.3e} where {limit:.3e} is the limit")


def spread(exact: Tensor, moved: Tensor) -> float:
    """Largest difference between a result and that of a disturbed computation."""
    return (moved - exact).abs().max().item()


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """1 and -1 at random, in the shape and type of a tensor."""
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like.dtype)


@torch.no_grad()
def disturbed(model: nn.Module, amount: Callable[[int], float] = gamma, seed: int = 0) -> nn.Module:
    """A copy whose every weight is moved, up or down at random, as sums in float32 move it.

    The weights of a convolution or linear layer stand in sums of as many products as a filter has
    numbers; those of normalisations and biases in one.

    Args:
        amount: :func:`gamma` or :func:`probable`.
    """
    generator, moved = torch.Generator().manual_seed(seed), copy.deepcopy(model)
    for weight in moved.parameters():
        products = weight[0].numel() if weight.dim() > 1 else 1
        weight.mul_(1 + amount(products) * random_signs(weight, generator))
    return moved
