"""Images, videos and stacks in, objects out: sources -> model -> writers.

Read in this order: ``pipeline`` (the whole way), ``sources`` and ``output_names`` (what a command
line names, and what its outputs are called), ``predictor`` (the model) and ``exported`` (a file of
``rdsnet export`` in its place), ``thresholds`` (from which score on objects are shown), ``uploads``
(images from whoever reaches a page or a service), ``writers`` (one file per format), ``ordering``
(what is uncertain comes first), ``threads`` (how reading and writing go on while the model
computes), ``result`` (the objects of one image, in Python). Large images: ``large`` (predicted in
tiles), ``tiles`` (which tile an object belongs to), ``large_files`` (the way of the command line).
"""

from rdsnet.prediction.large import TiledPrediction, predict_tiled
from rdsnet.prediction.pipeline import PredictionSummary, predict, predict_image
from rdsnet.prediction.predictor import Predictor

__all__ = [
    "PredictionSummary",
    "Predictor",
    "TiledPrediction",
    "predict",
    "predict_image",
    "predict_tiled",
]
