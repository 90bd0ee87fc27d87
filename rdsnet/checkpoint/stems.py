"""Weights for a model of other channels: the first convolution, averaged over those that it had.

A model then answers to equal channels as it did before, however many there are, if its mean and
deviation are the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def with_channels(weight: Tensor, channels: int) -> Tensor:
    """Weights (O, C, h, w) of a first convolution -> (O, ``channels``, h, w), all alike.

    Their sum over the channels is the same. Checkpoints may hold halves: the result is float32.
    """
    total = weight.float().sum(1, keepdim=True)
    return (total / channels).expand(-1, channels, -1, -1).contiguous()


def with_channels_of(
    model: nn.Module, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """Weights whose first convolution takes as many channels as that of a model.

    It is known by its name or, since names differ between libraries, as the one of three channels
    that otherwise has its shape.

    Returns:
        The weights; and what has changed, in words, "" where nothing had to.
    """
    weights = dict(weights)
    name, own = first_convolution(model)
    names = [name] if name in weights else [n for n, w in weights.items() if _may_be(w, own)]
    if len(names) != 1:
        return weights, ""
    stored = weights[names[0]]
    if stored.shape == own.shape or stored.shape[2:] != own.shape[2:] or len(stored) != len(own):
        return weights, ""
    before, now = stored.shape[1], own.shape[1]
    weights[names[0]] = with_channels(stored, now)
    return weights, f"the first convolution is averaged, from {before} channels to {now}"


def first_convolution(model: nn.Module) -> tuple[str, Tensor]:
    """Name and weight (O, C, h, w) of the convolution that sees the image."""
    convolutions = {name: w for name, w in model.named_parameters() if w.ndim == 4}
    own = [name for name in convolutions if name.startswith("backbone.bottom_up.")]
    name = (own or [*convolutions])[0]
    return name, convolutions[name]


def _may_be(weight: Tensor, own: Tensor) -> bool:
    """Whether this is ``own``, for colours."""
    return weight.shape == (len(own), 3, *own.shape[2:])
