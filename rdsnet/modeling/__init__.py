"""The method. Read :mod:`rdsnet.modeling.rdsnet` first.

Then, in this order: ``object_stream`` (what RDSNet asks of a detector) and ``retinanet_stream``
(the paper's) with ``atss``, ``quality``, ``lazy_conv`` and ``padded``; ``pixel_stream``;
``cropping``, ``mask_prior`` and ``mask_loss``; ``mbrm`` and ``refinement``; ``backbones``.
``precision``, ``processes`` and ``loading`` are what several of them need. ``inference``, with
``folding`` and ``winograd``, makes a trained model ready for prediction; ``group_statistics`` is
for images that it sees in tiles.

``cropping``, ``mask_loss`` and ``mbrm`` need torch alone; the rest is there when Detectron2 is.
"""

from importlib.util import find_spec

from rdsnet.modeling.mbrm import MBRM

__all__ = ["MBRM"]

if find_spec("detectron2") is not None:
    from rdsnet.modeling import backbones  # noqa: F401  (registers them)
    from rdsnet.modeling.inference import (
        inference_facts,
        inference_precision,
        prepare_for_inference,
    )
    from rdsnet.modeling.object_stream import (
        OBJECT_STREAM_REGISTRY,
        DensePredictions,
        ObjectStream,
        Positives,
    )
    from rdsnet.modeling.pixel_stream import PIXEL_STREAM_REGISTRY, PixelStream
    from rdsnet.modeling.rdsnet import RDSNet
    from rdsnet.modeling.retinanet_stream import RDSNetHead, RetinaNetStream

    __all__ += [
        "OBJECT_STREAM_REGISTRY",
        "PIXEL_STREAM_REGISTRY",
        "DensePredictions",
        "ObjectStream",
        "PixelStream",
        "Positives",
        "RDSNet",
        "RDSNetHead",
        "RetinaNetStream",
        "inference_facts",
        "inference_precision",
        "prepare_for_inference",
    ]
