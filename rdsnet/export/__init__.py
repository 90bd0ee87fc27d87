"""A trained model as one file that runs without this package: ONNX, or a program of torch.export.

Read in this order: ``exporting`` (the whole way, from a checkpoint to a file that was checked),
``graph`` and ``masks`` (the model from a uint8 image to boxes, scores, classes and masks, as it is
traced), ``files`` and ``sessions`` (writing and reading both formats, with what a user of the file
must know inside it), ``check`` (whether the graph and the file find what the model finds),
``decoding`` (masks from the compact form), ``runtime`` (a file in the place of its model).
"""

from rdsnet.export.exporting import ExportSummary, export
from rdsnet.export.runtime import ExportedModel

__all__ = ["ExportSummary", "ExportedModel", "export"]
