"""Images from whoever reaches a page or a service: what is opened, how large, how it is refused.

The model is loaded once, by whoever starts it; nothing that is sent is used as a config, a
checkpoint or a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from rdsnet.checkpoint.trained import model_threshold, prediction_config
from rdsnet.data.arrays import ArrayFile
from rdsnet.data.datasets import class_metadata
from rdsnet.data.image_formats import pillow_formats
from rdsnet.data.images import ImageFile
from rdsnet.data.pixels import RefusedError
from rdsnet.prediction.exported import build_predictor
from rdsnet.prediction.thresholds import ScoreThresholds

# What is opened, from whoever sends it: the most usual of what can be read.
_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_LOWEST_SCORE = 0.05


class Refusal(Enum):
    """Why an image is not taken."""

    NO_IMAGE = "its content is no image"
    TOO_LARGE = "it has too many pixels"
    UNREADABLE = "it is an image, but damaged, or one whose meaning is not known"


class RefusedUploadError(ValueError):
    """An image that is not taken, in words for the person who has sent it."""

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(message)
        self.refusal = refusal


@dataclass(frozen=True)
class Upload:
    """An image that was sent.

    Attributes:
        name: of the file, without its folder.
        image: as of a :class:`~rdsnet.prediction.sources.Frame`.
        pages: of the file; the first was read.
    """

    name: str
    image: np.ndarray
    pages: int


class UploadPredictor:
    """The model, and what it is allowed to be given.

    Args:
        config_file, weights, opts: as in :func:`rdsnet.checkpoint.trained.prediction_config`.
        max_megapixels: images of more pixels are refused.
        trust_checkpoint: as of :class:`~rdsnet.prediction.Predictor`.
        max_detections: objects per image; None: as configured.
        lowest_score: objects with lower scores are not looked for, unless the model was best so.

    Attributes:
        cfg: its config.
        predictor: finds all objects with a score of at least ``lowest_score``.
        thresholds: the scores that the model was best with.
        class_names, category_ids: of its classes; names may be unknown, None.
    """

    def __init__(
        self,
        config_file: str | None,
        weights: str,
        max_megapixels: float,
        opts: Sequence[str] = (),
        trust_checkpoint: bool = False,
        max_detections: int | None = None,
        lowest_score: float = _LOWEST_SCORE,
    ) -> None:
        self.cfg = cfg = prediction_config(config_file, weights, None, opts, max_detections)
        self.thresholds = ScoreThresholds.chosen(cfg)
        self.lowest_score = min(lowest_score, self.thresholds.lowest)
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = model_threshold(self.lowest_score)
        self.predictor = build_predictor(cfg, trust_checkpoint)
        self.class_names, self.category_ids = class_metadata(cfg)
        self.max_megapixels = max_megapixels

    def read(
        self, name: str, path: str | Path | None = None, stream: BinaryIO | None = None
    ) -> Upload:
        """The first page of a file.

        Args:
            name: as the person calls it, who hears of no other.
            path: where it lies.
            stream: its content, where it does not; closed at the end.

        Raises:
            RefusedUploadError: it is not taken.
        """
        formats = [name for name in _FORMATS if name in (*pillow_formats(), "TIFF")]
        try:
            file = ImageFile(str(path or name), formats, stream)
        except (OSError, ValueError) as error:
            if isinstance(error.__cause__, Image.DecompressionBombError):
                raise self._too_large(name, "too many pixels") from error
            raise RefusedUploadError(
                Refusal.NO_IMAGE,
                f"'{name}' is not an image that can be read ({', '.join(formats)}).",
            ) from error
        with file:
            try:
                megapixels = file.pixels() / 1e6
                if megapixels <= self.max_megapixels:
                    return self._upload(name, file, path, stream, formats)
            except RefusedUploadError:
                raise
            except RefusedError as error:
                message = f"'{name}' {error.__cause__}"
                raise RefusedUploadError(Refusal.UNREADABLE, message) from error
            except (OSError, ValueError) as error:
                message = f"'{name}' cannot be read: it is damaged or cut off."
                raise RefusedUploadError(Refusal.UNREADABLE, message) from error
        raise self._too_large(name, f"{megapixels:.1f} megapixels")

    def _upload(
        self,
        name: str,
        file: ImageFile,
        path: str | Path | None,
        stream: BinaryIO | None,
        formats: Sequence[str],
    ) -> Upload:
        channels = self.predictor.channels
        if channels.are_photographs:
            return Upload(name, file.read("BGR"), len(file))
        if stream is not None:
            stream.seek(0)
        with ArrayFile(str(path or name), channels.count, stream, formats) as array:
            height, width = array.size
            if height * width / 1e6 > self.max_megapixels:
                raise self._too_large(name, "too many pixels")
            return Upload(name, channels.scaled(array.read(), name), len(array))

    def prepare(self, upload: Upload) -> dict:
        """What the model is given; in any thread.

        Raises:
            RefusedUploadError: the image is too thin to be resized.
        """
        try:
            return self.predictor.prepare(upload.image)
        except ValueError as error:
            height, width = upload.image.shape[:2]
            message = f"'{upload.name}' of {width} x {height} px cannot be resized: {error}"
            raise RefusedUploadError(Refusal.UNREADABLE, message) from error

    def _too_large(self, name: str, size: str) -> RefusedUploadError:
        return RefusedUploadError(
            Refusal.TOO_LARGE,
            f"'{name}' has {size}; at most {self.max_megapixels:g} "
            f"{'are' if size.endswith('megapixels') else 'megapixels are'} taken. Make it smaller, "
            "or start this with a larger --max-megapixels.",
        )
