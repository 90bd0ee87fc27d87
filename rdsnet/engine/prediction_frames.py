"""From sources to frames: images, pages, frames of videos and cameras, read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from rdsnet.data.findings import listed, printable
from rdsnet.data.images import Picture, check_is_file, explained
from rdsnet.engine.output_names import OutputNames, with_number
from rdsnet.engine.prediction_input import Source
from rdsnet.engine.video import opencv_path

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
        index: its number in the video, or among the pages of the file, from 0; None: a file of one
            picture.
        video: name of the outputs of the video that it belongs to; None: an image file.
        frames_per_second: of the video.
    """

    name: str
    path: Path
    image: np.ndarray
    index: int | None = None
    video: str | None = None
    frames_per_second: float = FRAMES_PER_SECOND


class FrameReader:
    """Reads sources, each to its end.

    Args:
        skipped: is told of what cannot be read, once per file.
        expected: is told how many frames a file will give, as far as it says.
        pages: ranges of the frames and pages that are wanted, numbered from 0; None: all, and of
            photographs with side pictures the main one.
        most: frames at most of every file and camera; None: all.

    Attributes:
        with_side_pictures: files of which only the main picture was read.
        with_channels: files whose pages are channels of one picture.
    """

    def __init__(
        self,
        skipped: Callable[[Exception], None],
        expected: Callable[[int], None] = lambda number: None,
        pages: Sequence[range] | None = None,
        most: int | None = None,
    ) -> None:
        self._skipped, self._expected = skipped, expected
        self._pages, self._most = pages, most
        self._names = OutputNames()
        self.with_side_pictures: list[Path] = []
        self.with_channels: list[Path] = []

    def frames(self, source: Source) -> Iterator[Frame]:
        """The frames of a source, one after the other."""
        read = self._video if source.is_video else self._image
        yield from read(source)

    def _image(self, source: Source) -> Iterator[Frame]:
        path = source.path
        try:
            picture = Picture(str(path))
        except (OSError, ValueError) as error:
            self._skipped(error)
            return
        with picture:
            try:
                count = len(picture)
                numbers, is_single = self._chosen(path, picture, count)
            except (OSError, ValueError) as error:
                self._skipped(error)
                return
            self._expected(len(numbers))
            name = (self._names.single if is_single else self._names.numbered)(path.stem)
            failed: dict[int, Exception] = {}
            for k in numbers:
                try:
                    image = picture.read("BGR", k)
                except (OSError, ValueError) as error:
                    failed[k] = error
                    continue
                if is_single:
                    yield Frame(name, path, image)
                else:
                    yield Frame(with_number(name, k), path, image, k)
            if failed:
                self._skipped(_pages_error(failed, is_single))
            elif numbers[-1] == count - 1:
                try:
                    picture.check_whole()
                except ValueError as error:
                    self._skipped(error)

    def _chosen(self, path: Path, picture: Picture, count: int) -> tuple[list[int], bool]:
        """The numbers of the pages to read, of so many, and whether the file is one picture."""
        if count == 1 and (self._pages is None or _is_in(0, self._pages)):
            return [0], True
        if self._pages is None and picture.has_side_pictures:
            self.with_side_pictures.append(path)
            return [0], True
        wanted = [range(count)] if self._pages is None else self._pages
        numbers = [k for k in range(count) if _is_in(k, wanted)][: self._most]
        if not numbers:
            raise ValueError(
                f"image {printable(path)} has no page that --pages names: the first is 0, the last "
                f"{count - 1}"
            )
        if picture.channels > 1:
            self.with_channels.append(path)
        return numbers, False

    def _video(self, source: Source) -> Iterator[Frame]:
        name = self._names.numbered(source.path.stem)
        try:
            video = _opened(source)
        except (OSError, ValueError) as error:
            self._skipped(error)
            return
        try:
            yield from self._video_frames(source, name, video)
        finally:
            video.release()

    def _video_frames(self, source: Source, name: str, video: cv2.VideoCapture) -> Iterator[Frame]:
        rate = video.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate <= 1000 else FRAMES_PER_SECOND
        announced = 0 if source.camera is not None else int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        end = None if self._pages is None else max(part.stop for part in self._pages)
        self._expected(min(max(announced, 0), self._most or announced, end or announced))
        given = index = 0
        while index != end and given != self._most:
            there, image = video.read()
            if not there:
                break
            if self._pages is None or _is_in(index, self._pages):
                yield Frame(with_number(name, index), source.path, image, index, name, rate)
                given += 1
            index += 1
        else:
            return
        shown = printable(source.path)
        if index == 0 or index < WHOLE_VIDEO * announced:
            cut = f" of {announced}: the file is cut off" if announced > index else ""
            self._skipped(ValueError(f"{shown} ends after {index} frames{cut}"))
        elif given == 0:
            self._skipped(
                ValueError(f"{shown} has no frame that --pages names: the last is {index - 1}")
            )


def _opened(source: Source) -> cv2.VideoCapture:
    """Raises OSError or ValueError, in words."""
    if source.camera is not None:
        video = cv2.VideoCapture(source.camera)
    else:
        with explained(str(source.path), "video"):
            check_is_file(str(source.path))
            open(source.path, "rb").close()  # says what is wrong, which OpenCV does not
        with opencv_path(source.path) as path:
            video = cv2.VideoCapture(path)
    if not video.isOpened():
        what = printable(source.path)
        raise ValueError(f"{what} cannot be opened: no video that OpenCV can read")
    return video


def _is_in(number: int, ranges: Sequence[range]) -> bool:
    return any(number in part for part in ranges)


def _pages_error(failed: dict[int, Exception], is_single: bool) -> Exception:
    """One error for all pages of a file that cannot be read."""
    first = next(iter(failed.values()))
    return first if is_single else ValueError(f"page {listed(set(failed))}: {first}")
