"""What a command line names: images, folders, patterns, videos, cameras; read one at a time."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from rdsnet.data.images import read_image

IMAGE_ENDINGS = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
VIDEO_ENDINGS = frozenset(
    (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
)
# Where a video or camera does not say.
FRAMES_PER_SECOND = 25.0
# A video that ends before this share of the frames that it announces is cut off.
WHOLE_VIDEO = 0.9


@dataclass(frozen=True)
class Frame:
    """An image to predict.

    Attributes:
        name: of its outputs, unique in a run.
        path: the file that it comes from (of a camera: "camera 0").
        image: (H, W, 3) uint8 BGR.
        video: name of the outputs of the video that it belongs to; None: an image file.
        index: its number in the video, from 0.
        frames_per_second: of the video.
    """

    name: str
    path: Path
    image: np.ndarray
    video: str | None = None
    index: int = 0
    frames_per_second: float = FRAMES_PER_SECOND


@dataclass(frozen=True)
class Source:
    """Something that frames come from: an image file, a video file, or a camera (an index)."""

    path: Path
    camera: int | None = None

    @property
    def is_video(self) -> bool:
        return self.camera is not None or self.path.suffix.lower() in VIDEO_ENDINGS

    def expected(self) -> int:
        """Number of frames, as far as the file says; 0: unknown."""
        if self.camera is not None:
            return 0
        if not self.is_video:
            return 1
        video = cv2.VideoCapture(str(self.path))
        count = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
        video.release()
        return max(count, 0)

    def frames(self, names: set[str], most: int | None = None) -> Iterator[Frame]:
        """Read one frame after the other.

        Args:
            names: of outputs that are taken; gets those of this source.
            most: frames of a video at most; None: all.

        Raises:
            OSError, ValueError: the file cannot be read, or not to its end.
        """
        name = unused_name(self.path.stem, names)
        if self.is_video:
            yield from self._video_frames(name, most)
        else:
            yield Frame(name, self.path, read_image(str(self.path), "BGR"))

    def _video_frames(self, name: str, most: int | None) -> Iterator[Frame]:
        video = cv2.VideoCapture(str(self.path) if self.camera is None else self.camera)
        try:
            if not video.isOpened():
                raise ValueError(f"{self.path} cannot be opened: no video that OpenCV can read")
            rate = video.get(cv2.CAP_PROP_FPS)
            rate = rate if 0 < rate <= 1000 else FRAMES_PER_SECOND
            index = 0
            while most is None or index < most:
                there, image = video.read()
                if not there:
                    self._check_end(index, video.get(cv2.CAP_PROP_FRAME_COUNT))
                    return
                yield Frame(f"{name}_{index:06d}", self.path, image, name, index, rate)
                index += 1
        finally:
            video.release()

    def _check_end(self, index: int, announced: float) -> None:
        if index == 0 or (self.camera is None and index < WHOLE_VIDEO * announced):
            raise ValueError(
                f"{self.path} ends after {index} frames"
                + (f" of {announced:.0f}: the file is cut off" if announced > index else "")
            )


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """The sources that a command line names, in its order, none twice.

    A number is a camera, unless there is a file of that name; all else as :func:`find_images`.
    """
    sources: dict[Source, None] = {}
    for given in inputs:
        if given.isdecimal() and not os.path.exists(given):
            sources[Source(Path(f"camera {int(given)}"), int(given))] = None
        else:
            sources.update(dict.fromkeys(map(Source, find_images([given]))))
    return list(sources)


def find_images(inputs: Sequence[str]) -> list[Path]:
    """The files that a command line names, in its order, none twice.

    Args:
        inputs: paths of files (of any ending); folders (the image files directly inside, sorted by
            name); patterns with ``*``, ``?``, ``**`` (sorted). ``~`` is the home folder.

    Raises:
        FileNotFoundError: for a path that does not exist, or a folder or pattern without images.
    """
    found: dict[str, None] = {}
    for given in inputs:
        path = os.path.expanduser(given)
        if os.path.isfile(path):
            found[path] = None
            continue
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                inside = [entry.path for entry in entries if is_image_file(entry)]
            if not inside:
                endings = ", ".join(sorted(IMAGE_ENDINGS))
                raise FileNotFoundError(
                    f"--input: the folder '{given}' has no images ({endings}). Images in folders "
                    f"inside are named by a pattern, such as '{given.rstrip('/')}/**/*.jpg'."
                )
        elif glob.has_magic(path):
            inside = [name for name in glob.glob(path, recursive=True) if os.path.isfile(name)]
            if not inside:
                raise FileNotFoundError(f"--input: no file fits the pattern '{given}'.")
        else:
            raise FileNotFoundError(f"--input: '{given}' does not exist.")
        found.update(dict.fromkeys(sorted(inside)))
    return [Path(path) for path in found]


def is_image_file(entry: os.DirEntry) -> bool:
    return entry.is_file() and os.path.splitext(entry.name)[1].lower() in IMAGE_ENDINGS


def unused_name(stem: str, taken: set[str]) -> str:
    """The stem, with a number if it is taken: "cat", "cat_2"; adds it to ``taken``."""
    name, number = stem, 1
    while name.lower() in taken:  # some file systems do not tell cases apart
        number += 1
        name = f"{stem}_{number}"
    taken.add(name.lower())
    return name
