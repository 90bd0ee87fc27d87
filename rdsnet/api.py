"""Models in a notebook: load one, look at what it finds, train it further, export it.

    import rdsnet

    model = rdsnet.load("nuclei")
    result = model.predict("cells.png")
    result                       # in a notebook: the picture with its objects
    result.to_pandas()

All work is done by the rooms that the command line uses, too: same results, same files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from PIL import Image, ImageOps

from rdsnet.checkpoint.shipped import weights_file
from rdsnet.checkpoint.trained import model_threshold, names_and_ids, prediction_config
from rdsnet.data.channels import Channels, picture_of
from rdsnet.data.findings import printable
from rdsnet.data.images import read_image
from rdsnet.data.pixels import eight_bit, is_floating, opaque_image
from rdsnet.export import export
from rdsnet.export.exporting import ExportSummary
from rdsnet.prediction.exported import build_predictor
from rdsnet.prediction.pipeline import predict_image
from rdsnet.prediction.quantizing import export_int8
from rdsnet.prediction.result import Result
from rdsnet.prediction.thresholds import AUTO, ScoreThresholds
from rdsnet.training import argument_parser, run
from rdsnet.training.hooks import BEST_MODEL
from rdsnet.training.own_data import prepare
from rdsnet.training.settings import Wishes

ImageLike = str | os.PathLike | Image.Image | np.ndarray
Annotations = str | os.PathLike | Sequence[str | os.PathLike | None]


def load(
    weights: str | os.PathLike,
    *,
    config_file: str | None = None,
    device: str | None = None,
    precision: str = "auto",
    max_detections: int | None = None,
    trust_checkpoint: bool = False,
    opts: Sequence[str] = (),
) -> Model:
    """A trained model.

    Args:
        weights: the name of a model in the box (``rdsnet models`` lists them), or a checkpoint.
        config_file: None: the config in or beside the checkpoint.
        device: "cpu" or "cuda"; None: a GPU where there is one.
        precision: what predictions are computed in, as ``rdsnet predict --precision``.
        max_detections: objects per image; None: as configured.
        trust_checkpoint: load weights that hold arbitrary Python objects, running their code.
        opts: config options KEY VALUE.

    Raises:
        FileNotFoundError, ValueError: there are no such weights, or they do not fit.
    """
    opts = [*opts, *(["MODEL.DEVICE", device] if device else [])]
    computed_in = ["MODEL.RDSNET.INFERENCE.PRECISION", precision]
    words = [*computed_in, *opts]
    cfg = prediction_config(config_file, os.fspath(weights), None, words, max_detections)
    return Model(cfg, config_file, opts, trust_checkpoint)


class Model:
    """What :func:`load` returns.

    Attributes:
        cfg: its config.
        weights: the path of its file.
        class_names: of its K classes; None: unknown.
        score_thresholds: from which score on objects are shown, if nothing else is asked for.
    """

    def __init__(
        self, cfg: CfgNode, config_file: str | None, opts: Sequence[str], trust_checkpoint: bool
    ) -> None:
        self.cfg, self.weights = cfg, weights_file(cfg.MODEL.WEIGHTS)
        self.class_names = names_and_ids(cfg)[0]
        self.score_thresholds = ScoreThresholds.chosen(cfg)
        self._config_file, self._opts, self._trust = config_file, list(opts), trust_checkpoint
        self._predictor = build_predictor(cfg, trust_checkpoint)

    def __repr__(self) -> str:
        names = ", ".join((self.class_names or [])[:5])
        count = self.cfg.MODEL.RETINANET.NUM_CLASSES
        more = f": {names}{', ...' if count > 5 else ''}" if names else ""
        return f"<Model {self.weights}, {count} class{'es' * (count > 1)}{more}>"

    def predict(self, image: ImageLike, score_threshold: float | str = AUTO) -> Result:
        """Find the objects of one image.

        Args:
            image: a path, read as ``rdsnet predict`` reads it; an image of Pillow; or an array
                (H, W, 3) uint8 in the order RGB, as Pillow and matplotlib have it (of OpenCV's BGR:
                ``image[..., ::-1]``), or (H, W) grey or (H, W, 4) RGBA, 8 or 16 bit. For a model of
                other channels (``cfg.INPUT.CHANNELS``) a path or an array (H, W, C), or (H, W) of
                one, with the numbers that its files have.
            score_threshold: leave out what has a lower score; "auto": than what was best for its
                class in validation, or 0.5 where the checkpoint does not say.

        Raises:
            FileNotFoundError, ValueError, TypeError: for what is no such image, and another
                threshold.
        """
        thresholds = self.score_thresholds
        if score_threshold != AUTO:
            thresholds = ScoreThresholds.chosen(self.cfg, score_threshold)
        channels = self._predictor.channels
        if channels.are_photographs:
            pixels = np.ascontiguousarray(_rgb(image)[:, :, ::-1])
        else:
            pixels = _values(image, channels)
        stream = getattr(self._predictor.model, "object_stream", None)
        if stream is not None:  # else an exported file, which has its own
            stream.score_threshold = model_threshold(thresholds.lowest)
        instances = predict_image(self._predictor, pixels, thresholds)
        shown = np.ascontiguousarray(picture_of(pixels)[:, :, ::-1])
        return Result(shown, instances, self.class_names)

    def train(
        self,
        data: Annotations,
        val: Annotations | None = None,
        *,
        output: str | None = None,
        epochs: float | None = None,
        iterations: int | None = None,
        batch_size: int | None = None,
        patience: int = 0,
        ema: bool = False,
        augment: str | None = None,
        channels: int | None = None,
        hold_out: bool = True,
        resume: bool = False,
        opts: Sequence[str] = (),
    ) -> Model:
        """Train a model on your data that starts from this one: ``rdsnet train --data --weights``.

        Args:
            data, val: annotations of any tool, or a pair of them and the folder of their images, to
                train on and to evaluate on; without ``val`` what ``data`` has for validation, or a
                part of the images.
            output: the folder of the run; None: ``output/`` and the name of the data.
            epochs, iterations: one of them, or neither: by the data.
            batch_size: images per iteration; None: as configured.
            patience: stop when mask AP has not improved in so many evaluations; 0: never.
            ema: use a moving average of the weights.
            augment: how images are varied, a name in :data:`rdsnet.data.augmentations.PRESETS`;
                None: by the data.
            channels: of an image; None: by the files.
            hold_out: False: train on everything, and evaluate on nothing.
            resume: go on with the run in ``output``.
            opts: config options KEY VALUE, which override everything.

        Returns:
            The trained model: ``model_best.pth`` in the folder of the run.

        Raises:
            FileNotFoundError, ValueError: for data or wishes that do not fit; then nothing has been
                written.
        """
        if epochs is not None and iterations is not None:
            raise ValueError("give epochs or iterations, not both")
        wishes = Wishes(
            epochs, iterations, batch_size, 1, patience, ema, augment=augment, channels=channels
        )
        config_file, options, settings = prepare(
            _annotations(data),
            _annotations(val) if val else None,
            config=self._config_file,
            weights=self.weights,
            output=output,
            wishes=wishes,
            hold_out=hold_out,
            opts=["MODEL.DEVICE", self.cfg.MODEL.DEVICE, *opts],
            resume=resume,
        )
        for topic, text in settings.notes:
            print(f"{topic:<12}{text}")
        args = argument_parser().parse_args([])
        args.config_file, args.opts, args.resume = config_file, options, resume
        args.data, args.trust_checkpoint = data, self._trust
        run(args)
        return load(Path(settings.options["OUTPUT_DIR"]) / BEST_MODEL, device=self.cfg.MODEL.DEVICE)

    def export(
        self,
        output: str | os.PathLike,
        *,
        size: tuple[int, int] | None = None,
        max_detections: int | None = None,
        score_threshold: float | None = None,
        int8: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    ) -> ExportSummary:
        """Write the model as one file for other runtimes: ``rdsnet export``.

        Arguments: see :func:`rdsnet.export.export`. The ending of ``output`` is the format.
        ``int8``: images to choose ranges by, or a folder of them, see :func:`.export_int8`.
        """
        images = [int8] if isinstance(int8, str | os.PathLike) else int8
        write = export if images is None else partial(export_int8, images)
        return write(
            self._config_file,
            self.weights,
            output,
            size=size,
            max_detections=max_detections,
            score_threshold=score_threshold,
            opts=self._opts,
            trust_checkpoint=self._trust,
        )


def _annotations(data: Annotations) -> tuple[str, str | None]:
    pair = (data, None) if isinstance(data, str | os.PathLike) else tuple(data)
    if len(pair) != 2:
        raise ValueError(
            f"data is a path to annotations, or a pair of it and the folder of images, got {pair}"
        )
    file, images = pair
    return os.fspath(file), None if images is None else os.fspath(images)


def _values(image: ImageLike, channels: Channels) -> np.ndarray:
    """(H, W, C) scaled, of what is no photograph."""
    if isinstance(image, str | os.PathLike):
        return channels.read(os.fspath(image), "")
    values = np.asarray(image)
    values = values[:, :, None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[2] != channels.count or not values.size:
        raise ValueError(
            f"the model expects an array (H, W, {channels.count}), not {values.shape}: "
            f"it was trained on images of {channels.count} channels"
        )
    return channels.scaled(values, "of the array")


def _rgb(image: ImageLike) -> np.ndarray:
    """(H, W, 3) uint8 RGB, as the readers of files give it."""
    if isinstance(image, str | os.PathLike):
        if not os.path.lexists(image):
            raise FileNotFoundError(
                f"the image {printable(image)} does not exist (relative paths start at "
                f"{os.getcwd()})"
            )
        return np.ascontiguousarray(read_image(os.fspath(image), "RGB"))
    if isinstance(image, Image.Image):
        return _from_pillow(ImageOps.exif_transpose(image))
    if not isinstance(image, np.ndarray):
        raise TypeError(
            "an image is a path, an image of Pillow or an array (H, W, 3) in the order RGB, not a "
            f"{type(image).__name__}"
        )
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or channels not in (1, 3, 4) or not image.size:
        raise ValueError(
            f"an image is an array (H, W, 3), (H, W) or (H, W, 4), not {image.shape}. Give several "
            "images one by one."
        )
    if image.dtype.kind not in "ui":
        raise ValueError(f"the array {is_floating(str(image.dtype))}")
    levels = eight_bit(image).reshape(*image.shape[:2], channels)
    if channels == 4:
        levels = np.asarray(opaque_image(levels[..., :3], levels[..., 3]).convert("RGB"))
    return np.array(np.broadcast_to(levels, (*levels.shape[:2], 3)))


def _from_pillow(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise ValueError(f"the image {is_floating('floating-point')}")
    if not image.mode.startswith("I") and image.mode not in ("P", "LA", "RGBA"):
        return np.array(image.convert("RGB"))
    with tempfile.TemporaryDirectory() as folder:  # the readers know depths and transparency
        path = os.path.join(folder, "image.png")
        image.save(path)
        return read_image(path, "RGB")
