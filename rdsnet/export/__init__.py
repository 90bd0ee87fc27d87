"""A trained model for use without this package: ONNX, OpenVINO, or a program of torch.export.

Read in this order: ``exporting`` (the whole way, from a checkpoint to a file that was checked),
``graph`` and ``masks`` (the model from a uint8 image to boxes, scores, classes and masks, as it is
traced), ``files``, ``ir`` and ``sessions`` (writing and reading the formats, with what a user of
the file must know inside it), ``check`` (whether the graph and the file find what the model finds),
``decoding`` (masks from the compact form), ``runtime`` (a file in the place of its model).
"""

from rdsnet.export.exporting import ExportSummary, export
from rdsnet.export.runtime import ExportedModel

__all__ = ["ExportSummary", "ExportedModel", "export"]
