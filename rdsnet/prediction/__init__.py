"""Images, videos and stacks in, objects out: sources -> model -> writers.

Read in this order: ``pipeline`` (the whole way), ``sources`` and ``output_names`` (what a command
line names, and what its outputs are called), ``predictor`` (the model) and ``exported`` (a file of
``rdsnet export`` in its place; ``quantizing``: such a file in 8 bits), ``selection`` and
``thresholds`` (which objects are kept), ``uploads`` (images from whoever reaches a page or a
service), ``writers`` (one file per format), ``ordering`` (what is uncertain comes first),
``threads`` (how reading and writing go on while the model computes), ``result`` (the objects of
one image, in Python). Large images: ``large`` (predicted in tiles), ``tiled_pass`` (once over an
image), ``tiles`` (which tile an object belongs to), ``size_ranges`` (which pass), ``tile_choice``
(whether tiles are needed), ``large_files`` (the way of the command line). On several machines:
``ray_engine`` (the way of the command line), ``listing`` and ``addresses`` (what is to be
predicted, in object stores too), ``ray_predictor`` (what a worker does), ``rows`` (what it
answers), ``shards`` (what is done already).
"""

from importlib import import_module

from rdsnet.prediction.large import TiledPrediction, predict_tiled
from rdsnet.prediction.pipeline import PredictionSummary, predict, predict_image
from rdsnet.prediction.predictor import Predictor

__all__ = [
    "PredictionSummary",
    "Predictor",
    "RayPredictor",
    "TiledPrediction",
    "predict",
    "predict_image",
    "predict_tiled",
    "predict_with_ray",
]

_WITH_RAY = {"RayPredictor": "ray_predictor", "predict_with_ray": "ray_engine"}


def __getattr__(name: str):
    """Those that need Ray, which is imported by nobody else and takes seconds."""
    if name not in _WITH_RAY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    try:
        return getattr(import_module(f"{__name__}.{_WITH_RAY[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("ray", "pyarrow"):
            raise
        raise ModuleNotFoundError(
            "prediction on several machines needs Ray Data: pip install 'rdsnet[ray]'",
            name=error.name,
        ) from error
