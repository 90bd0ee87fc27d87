"""The authors' pixel stream: corners of the feature maps are aligned in up-sampling."""

from __future__ import annotations

from detectron2.config import configurable
from torch import nn

from rdsnet.modeling import PIXEL_STREAM_REGISTRY, PixelStream


@PIXEL_STREAM_REGISTRY.register()
class AlignedCornersPixelStream(PixelStream):
    """:class:`~rdsnet.modeling.PixelStream` with ``align_corners=True`` in every up-sampling.

    It stretches a map by up to half a cell towards its borders, which is what checkpoints trained
    that way expect.
    """

    @configurable
    def __init__(self, input_shape, **kwargs) -> None:
        super().__init__(input_shape, **kwargs)
        for module in self.modules():
            if isinstance(module, nn.Upsample):
                module.align_corners = True
