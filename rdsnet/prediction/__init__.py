"""Images, videos and stacks in, objects out: sources -> model -> writers.

Read in this order: ``pipeline`` (the whole way, one image at a time), ``sources`` and
``output_names`` (what a command line names, and what its outputs are called), ``predictor`` (the
model) and ``exported`` (an exported file in its place), ``writers`` (one file per format).
"""

from rdsnet.prediction.pipeline import PredictionSummary, predict, predict_image
from rdsnet.prediction.predictor import Predictor

__all__ = ["PredictionSummary", "Predictor", "predict", "predict_image"]
