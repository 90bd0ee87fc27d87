"""The authors' anchors: whole pixels, inclusive."""

from __future__ import annotations

from detectron2.modeling.anchor_generator import (
    ANCHOR_GENERATOR_REGISTRY,
    BufferList,
    DefaultAnchorGenerator,
)


@ANCHOR_GENERATOR_REGISTRY.register()
class RoundedAnchorGenerator(DefaultAnchorGenerator):
    """Detectron2's anchors, centred in their cells, in inclusive pixels and rounded.

    Rounding moves an edge by up to 0.49 px, which for the smallest anchors of P3 is 1.5 % of their
    side. The order of the anchors of a location stays Detectron2's (size, then aspect ratio); the
    checkpoint converter reorders the channels of the authors' heads.
    """

    def _calculate_anchors(
        self, sizes: list[list[float]], aspect_ratios: list[list[float]]
    ) -> BufferList:
        anchors = super()._calculate_anchors(sizes, aspect_ratios)
        inclusive = [
            (around_zero + stride / 2 - around_zero.new_tensor([0, 0, 1, 1])).round()
            for around_zero, stride in zip(anchors, self.strides, strict=True)
        ]
        return BufferList(inclusive)
