"""How many channels images have and how their numbers are scaled: ``INPUT.CHANNELS``, ``SCALING``.

Three channels without scaling are photographs: 8 bits, as :mod:`rdsnet.data.images` reads them.
All other images are arrays of their file (:mod:`rdsnet.data.arrays`), scaled to 0 .. 255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from PIL import Image

from rdsnet.data.arrays import ArrayFile, Kind, kind_of
from rdsnet.data.images import explained, read_image
from rdsnet.data.pixels import RefusedError
from rdsnet.data.threads import for_each_file

SCALINGS = ("none", "image", "dataset")

# Pixels of an image, evenly spread, that its percentiles are taken from.
_SAMPLED = 2**20
# Images of a data set, and pixels of each, that those of the data set are taken from.
_SAMPLED_IMAGES, _SAMPLED_OF_EACH = 500, 2**14

Range = tuple[float, float]
"""What becomes 0 and what becomes 255."""


@dataclass(frozen=True)
class Channels:
    """What images are, by a config.

    Attributes:
        count: C, of an image.
        scaling: "none": numbers of 8 bits, as they are; "image", "dataset": percentiles of every
            channel of the image, or of the data set, become 0 and 255. What lies beyond is cut off.
        percentiles: the lower and the upper one.
        ranges: of the data set, for every channel.
    """

    count: int = 3
    scaling: str = "none"
    percentiles: Range = (0.1, 99.9)
    ranges: tuple[Range, ...] = ()

    @classmethod
    def of(cls, cfg: CfgNode) -> Channels:
        """Those of a config.

        Raises:
            ValueError: its keys contradict each other.
        """
        count, scaling = cfg.INPUT.CHANNELS, cfg.INPUT.SCALING
        low, high = cfg.INPUT.PERCENTILES
        ranges = tuple((float(a), float(b)) for a, b in cfg.INPUT.SCALE_RANGES)
        ranges = ranges if scaling == "dataset" else ()
        if count < 1:
            raise ValueError(f"INPUT.CHANNELS must be at least 1, got {count}")
        if scaling not in SCALINGS:
            raise ValueError(f"INPUT.SCALING must be one of {', '.join(SCALINGS)}, got '{scaling}'")
        if not 0 <= low < high <= 100:
            raise ValueError(
                f"INPUT.PERCENTILES must be two of 0 to 100 that rise, got {low, high}"
            )
        if scaling == "dataset" and len(ranges) != count:
            raise ValueError(
                f"INPUT.SCALING dataset needs INPUT.SCALE_RANGES [[low, high], ...] for each of "
                f"{count} channels, got {len(ranges)}: 'rdsnet train --data' measures them. "
                "INPUT.SCALING image does without."
            )
        channels = cls(count, scaling, (low, high), ranges)
        means, deviations = len(cfg.MODEL.PIXEL_MEAN), len(cfg.MODEL.PIXEL_STD)
        if not channels.are_photographs and not means == deviations == count:
            raise ValueError(
                f"INPUT.CHANNELS {count} needs as many numbers in MODEL.PIXEL_MEAN and "
                f"MODEL.PIXEL_STD, which have {means} and {deviations}"
            )
        return channels

    @property
    def are_photographs(self) -> bool:
        """Whether images are read as colours of 8 bits, whatever their files have."""
        return self.count == 3 and self.scaling == "none"

    def require_photographs(self, who: str) -> None:
        """Raise ValueError unless images are photographs; ``who`` reads nothing else."""
        if not self.are_photographs:
            raise ValueError(
                f"{who} reads photographs alone (INPUT.CHANNELS 3, INPUT.SCALING none), and the "
                f"config has {self.count} and {self.scaling}"
            )

    @property
    def dtype(self) -> type:
        """Of an image: ``numpy.uint8`` or ``numpy.float32``."""
        return np.uint8 if self.scaling == "none" else np.float32

    def read(self, file_name: str, format: str) -> np.ndarray:
        """The first image of a file, as a model is given it.

        Args:
            file_name: its path.
            format: of photographs, as of :func:`rdsnet.data.images.read_image`.

        Returns:
            (H, W, C), 0 .. 255, of :attr:`dtype`.

        Raises:
            FileNotFoundError, OSError, ValueError: as :func:`rdsnet.data.images.read_image`; the
                image has another number of channels.
        """
        if self.are_photographs:
            return read_image(file_name, format)
        with ArrayFile(file_name, self.count) as file:
            return self.scaled(file.read(), file_name)

    def scaled(self, values: np.ndarray, file_name: str) -> np.ndarray:
        """Numbers (H, W, C) of a file -> 0 .. 255, of :attr:`dtype`. NaN becomes 0.

        Args:
            file_name: for messages.

        Raises:
            ValueError: they are not of 8 bits, and there is no scaling.
        """
        if self.scaling == "none":
            if values.dtype != np.uint8:
                with explained(file_name):
                    raise RefusedError(
                        f"has numbers of {values.dtype}, and INPUT.SCALING none takes 8 bits "
                        "alone. Train with INPUT.SCALING dataset or image, or save it with 8 bits."
                    )
            return values
        return scaled_by(values, self.ranges or ranges_of(sample(values), self.percentiles))


PHOTOGRAPHS = Channels()
"""The usual: colours of 8 bits."""


def scaled_by(values: np.ndarray, ranges: Sequence[Range]) -> np.ndarray:
    """(H, W, C) -> float32, a range of every channel brought to 0 .. 255, others cut off there."""
    low, high = np.asarray(ranges, np.float64).T
    factor = np.divide(255.0, high - low, out=np.zeros_like(low), where=high > low)
    scaled = (values.astype(np.float32) - low.astype(np.float32)) * factor.astype(np.float32)
    return np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255)


def sample(values: np.ndarray, most: int = _SAMPLED) -> np.ndarray:
    """At most so many pixels (P, C) of an image (H, W, C), evenly spread over it."""
    height, width = values.shape[:2]
    step = max(1, int(np.ceil((height * width / most) ** 0.5)))
    return values[step // 2 :: step, step // 2 :: step].reshape(-1, values.shape[2])


def ranges_of(pixels: np.ndarray, percentiles: Range) -> tuple[Range, ...]:
    """The range of each channel of pixels (P, C), finite numbers alone.

    That of all where the percentiles are the same number, as of dark images with few bright spots.
    """
    ranges = []
    for values in pixels.T:
        values = values[np.isfinite(values)]
        if not len(values):
            ranges.append((0.0, 0.0))
            continue
        low, high = np.percentile(values, percentiles)
        if low == high:
            low, high = values.min(), values.max()
        ranges.append((float(low), float(high)))
    return tuple(ranges)


def measured_ranges(files: Sequence[str], channels: int, percentiles: Range) -> tuple[Range, ...]:
    """The ranges of a data set, from pixels of up to 500 of its images.

    Args:
        files: of its images.
        channels: of each.

    Raises:
        FileNotFoundError, OSError, ValueError: as :class:`~rdsnet.data.arrays.ArrayFile`.
    """

    def pixels(file_name: str) -> np.ndarray:
        with ArrayFile(file_name, channels) as file:
            return sample(file.read(), _SAMPLED_OF_EACH)

    places = np.linspace(0, len(files) - 1, min(len(files), _SAMPLED_IMAGES)).round().astype(int)
    chosen = [files[place] for place in places]
    return ranges_of(np.concatenate(for_each_file(pixels, chosen, "Measuring")), percentiles)


def picture_of(image: np.ndarray) -> np.ndarray:
    """What people are shown of an image: (H, W, 3) uint8 BGR.

    Photographs as they are. One channel is grey; of several, the first is red, the second green,
    the third blue.

    Args:
        image: (H, W, C), 0 .. 255; three channels of uint8 are BGR.
    """
    channels = image.shape[2]
    if image.dtype == np.uint8 and channels == 3:
        return image
    if channels == 1:
        shown = np.repeat(image, 3, axis=2)
    else:
        shown = np.zeros((*image.shape[:2], 3), image.dtype)
        shown[:, :, : min(channels, 3)] = image[:, :, :3]
    return np.round(shown).astype(np.uint8)[:, :, ::-1]


def read_picture(file_name: str) -> np.ndarray:
    """What people are shown of a file, whichever model it is for: (H, W, 3) uint8 RGB.

    Photographs as :func:`rdsnet.data.images.read_image` reads them, others by :func:`picture_of`,
    their numbers scaled by percentiles of the image.

    Raises:
        FileNotFoundError, OSError, ValueError: as there.
    """
    try:
        is_photograph = kind_of(file_name).is_photograph
    except ValueError:
        is_photograph = True  # whose reader says what is wrong
    if is_photograph:
        return read_image(file_name, "RGB")
    with ArrayFile(file_name) as file:
        values = file.read()
    if values.dtype != np.uint8:
        values = scaled_by(values, ranges_of(sample(values), Channels.percentiles))
    return picture_of(values)[:, :, ::-1]


def kinds_of(files: Sequence[str], channels: int | None = None) -> dict[str, Kind]:
    """{path: what the file holds}, without those that cannot be opened.

    Args:
        channels: as of :func:`~rdsnet.data.arrays.kind_of`.
    """

    def kind(file: str) -> Kind | None:
        try:
            return kind_of(file, channels)
        except (OSError, ValueError):  # whoever reads the image says what is wrong
            return None

    found = zip(files, for_each_file(kind, files, "Looking at channels"), strict=True)
    return {file: kind for file, kind in found if kind is not None}


def are_photographs(kinds: Mapping[str, Kind]) -> bool:
    """Whether all can be read as photographs, and one at least is.

    Among photographs, grey of more than 8 bits is one, too.
    """
    some = kinds.values()
    can_be = all(k.is_photograph or (k.channels == 1 and k.is_whole) for k in some)
    return can_be and (not kinds or any(k.is_photograph for k in some))


class ArrayInput(T.AugInput):
    """What augmentations see of an image that is no photograph."""

    def transform(self, tfm: T.Transform) -> None:
        self.image = applied(tfm, self.image)


def applied(transform: T.Transform, image: np.ndarray) -> np.ndarray:
    """An image (H, W, C) transformed; of any number of channels and type where it is resized.

    Detectron2 resizes uint8 of one and three channels with Pillow, and without its filter all
    others; here these are, too, a channel at a time.
    """
    if isinstance(transform, T.TransformList):
        for part in transform.transforms:
            image = applied(part, image)
        return image
    is_usual = image.dtype == np.uint8 and image.shape[2] in (1, 3)
    if is_usual or not isinstance(transform, T.ResizeTransform):
        return transform.apply_image(image)
    size = transform.new_w, transform.new_h
    resized = (
        Image.fromarray(np.ascontiguousarray(image[:, :, channel])).resize(size, transform.interp)
        for channel in range(image.shape[2])
    )
    return np.stack([np.asarray(channel) for channel in resized], axis=2)
