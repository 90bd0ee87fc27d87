"""What a command line names: images, folders, patterns, videos, cameras; read one at a time."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from rdsnet.data.arrays import ArrayFile
from rdsnet.data.channels import PHOTOGRAPHS, Channels
from rdsnet.data.findings import counted, printable
from rdsnet.data.image_formats import has_image_content, has_image_ending
from rdsnet.data.images import ImageFile, check_is_file, explained
from rdsnet.data.videos import is_video, path_for_opencv
from rdsnet.data.windows import LargeImage
from rdsnet.prediction.output_names import numbered

# Where a video or camera does not say.
_FRAMES_PER_SECOND = 25.0
# A video that ends before this share of the frames that it announces is cut off.
_WHOLE_VIDEO = 0.9
# Files that systems put beside images; what begins with a dot is hidden anyway.
_COMPANIONS = ("thumbs.db", "desktop.ini", "ehthumbs.db")


@dataclass(frozen=True)
class Frame:
    """An image to predict.

    Attributes:
        name: of its outputs, unique in a run; as it is read, its file's, see :meth:`named`.
        path: the file that it comes from (of a camera: "camera 0"); text where it is an address.
        image: (H, W, 3) uint8 BGR; of what is no photograph (H, W, C), as
            :meth:`rdsnet.data.channels.Channels.read` gives it.
        video: name of the outputs of the video that it belongs to; None: an image file.
        index: its number in the video, or of the page in the file, from 0.
        frames_per_second: of the video.
        is_one_of_many: whether it is a frame of a video or a page of several.
        part: of a large image, from 0: the frame stands for its objects there; None: for all.
        file: the large image, open, whose pixels ``image`` does not have; None: it has them.
    """

    name: str
    path: Path | str
    image: np.ndarray
    video: str | None = None
    index: int = 0
    frames_per_second: float = _FRAMES_PER_SECOND
    is_one_of_many: bool = False
    part: int | None = None
    file: LargeImage | None = None

    def named(self, name: str) -> Frame:
        """The same, ``name`` being that of its file's outputs."""
        own = numbered(name, self.index) if self.is_one_of_many else name
        return replace(self, name=own, video=None if self.video is None else name)


@dataclass(frozen=True)
class Source:
    """Something that frames come from: an image file, a video file, or a camera (an index)."""

    path: Path
    camera: int | None = None
    is_video_file: bool = False

    @property
    def is_video(self) -> bool:
        return self.camera is not None or self.is_video_file

    def expected(self) -> int:
        """Number of frames, as far as a video says; 0: unknown. 1 for image files."""
        if self.camera is not None:
            return 0
        if not self.is_video:
            return 1
        if not self.path.is_file():  # opening a pipe might never end
            return 0
        with path_for_opencv(self.path) as path:
            video = cv2.VideoCapture(path)
        count = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
        video.release()
        return max(count, 0)

    def frames(
        self,
        most: int | None = None,
        pages: Callable[[int], bool] = lambda page: True,
        say: Callable[[str], None] = lambda text: None,
        channels: Channels = PHOTOGRAPHS,
    ) -> Generator[Frame, None, None]:
        """Read one frame after the other; outputs get their names later, in order.

        Args:
            most: frames of a video, or pages, at most; None: all.
            pages: whether a page of a file with several is wanted, see :func:`chosen_pages`.
            say: is told in a sentence what is done with a file of several images.
            channels: what the images are.

        Raises:
            OSError, ValueError: the file cannot be read, or not to its end.
        """
        if self.is_video:
            channels.require_photographs(f"{printable(self.path)} is a video, and its reader")
            yield from self._video_frames(most)
        elif not channels.are_photographs:
            yield from self._arrays(most, pages, channels)
        else:
            yield from self._pages(most, pages, say)

    def _pages(
        self,
        most: int | None,
        wanted: Callable[[int], bool],
        say: Callable[[str], None],
    ) -> Generator[Frame, None, None]:
        with ImageFile(str(self.path)) as file:
            count = len(file)
            if count > 1 and file.has_side_images:
                say(
                    f"{printable(self.path)} has {count} pictures, the first is read: the others "
                    "are previews, layers or depth maps of it."
                )
                count = 1
            if count == 1:
                yield Frame(self.path.stem, self.path, file.read("BGR"))
                return
            if file.channels > 1:
                say(
                    f"{printable(self.path)}: the file says that its pages are "
                    f"{file.channels} channels of one picture; they are read as pictures of "
                    "their own (--pages chooses)."
                )
            name = self.path.stem
            for page in self._chosen(count, wanted, most):
                image = file.read("BGR", page)
                yield Frame(name, self.path, image, index=page, is_one_of_many=True)
            file.check_whole()

    def _arrays(
        self, most: int | None, wanted: Callable[[int], bool], channels: Channels
    ) -> Generator[Frame, None, None]:
        """The images of a file that are no photographs."""
        with ArrayFile(str(self.path), channels.count) as file:
            count = len(file)
            for page in self._chosen(count, wanted, most) if count > 1 else [0]:
                image = channels.scaled(file.read(page), str(self.path))
                yield Frame(self.path.stem, self.path, image, index=page, is_one_of_many=count > 1)

    def _chosen(self, count: int, wanted: Callable[[int], bool], most: int | None) -> list[int]:
        chosen = [page for page in range(count) if wanted(page)][:most]
        if not chosen:
            raise ValueError(
                f"{printable(self.path)} has pages 0 to {count - 1}; --pages names none of them"
            )
        return chosen

    def _video_frames(self, most: int | None) -> Generator[Frame, None, None]:
        shown, name = printable(self.path), self.path.stem
        video = self._opened()
        try:
            if not video.isOpened():
                raise ValueError(f"{shown} cannot be opened: no video that OpenCV can read")
            rate = video.get(cv2.CAP_PROP_FPS)
            rate = rate if 0 < rate <= 1000 else _FRAMES_PER_SECOND
            index = 0
            while most is None or index < most:
                there, image = video.read()
                if not there:
                    self._check_end(index, video.get(cv2.CAP_PROP_FRAME_COUNT))
                    return
                yield Frame(name, self.path, image, name, index, rate, True)
                index += 1
        finally:
            video.release()

    def _opened(self) -> cv2.VideoCapture:
        if self.camera is not None:
            return cv2.VideoCapture(self.camera)
        with explained(str(self.path), "video"):
            check_is_file(str(self.path))
            open(self.path, "rb").close()
        with path_for_opencv(self.path) as path:
            return cv2.VideoCapture(path)

    def _check_end(self, index: int, announced: float) -> None:
        if index == 0 or (self.camera is None and index < _WHOLE_VIDEO * announced):
            raise ValueError(
                f"{printable(self.path)} ends after {index} frames"
                + (f" of {announced:.0f}: the file is cut off" if announced > index else "")
            )


@dataclass
class Sources:
    """What a command line names, in its order, none twice.

    Attributes:
        sources: to be read.
        left_out: files of folders that are neither image nor video, counted by their ending.
    """

    sources: list[Source]
    left_out: Counter[str] = field(default_factory=Counter)

    def left_out_text(self) -> str:
        """A sentence on the files that were left out; "" if there are none."""
        if not self.left_out:
            return ""
        kinds = [f"{ending} {number}" for ending, number in self.left_out.most_common(8)]
        kinds += ["..."] if len(self.left_out) > 8 else []
        number = counted(self.left_out.total(), "other file")
        return f"{number} in the folders, neither image nor video: {', '.join(kinds)}."


def find_sources(inputs: Sequence[str]) -> Sources:
    """Find what a command line names.

    Args:
        inputs: paths of files; folders (what can be read of the files directly inside, sorted by
            name); patterns with ``*``, ``?``, ``**`` (sorted); numbers of cameras, unless there is
            a file of that name. ``~`` is the home folder.

    Raises:
        FileNotFoundError: for a path that does not exist, or a folder or pattern without images
            and videos.
    """
    found = Sources([])
    for given in inputs:
        path = os.path.expanduser(given)
        if given.isdecimal() and not os.path.exists(given):
            found.sources.append(Source(Path(f"camera {int(given)}"), int(given)))
        elif os.path.isdir(path):
            found.sources += _in_folder(path, given, found.left_out)
        elif os.path.lexists(path):
            found.sources.append(source_of(path))
        elif glob.has_magic(path):
            inside = sorted(name for name in glob.glob(path, recursive=True) if _is_no_folder(name))
            if not inside:
                raise FileNotFoundError(f"--input: no file fits the pattern '{printable(given)}'.")
            found.sources += map(source_of, inside)
        else:
            raise FileNotFoundError(f"--input: '{printable(given)}' does not exist.")
    found.sources = list(dict.fromkeys(found.sources))
    return found


def chosen_pages(text: str) -> Callable[[int], bool]:
    """Whether a page, from 0, is among those of "all", "first", "3", "2-5" or "0,4-".

    Raises:
        ValueError: for another text.
    """
    if text == "all":
        return lambda page: True
    ranges = []
    for part in (text if text != "first" else "0").split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or not (last.isdecimal() or (dash and not last) or not dash):
            raise ValueError(
                f"'{text}' names no pages: write all, first, or numbers from 0 such as 0,4-6 or 10-"
            )
        end = int(last) if last else (float("inf") if dash else int(first))
        if end < int(first):
            raise ValueError(f"'{text}': pages {part.strip()} end before they begin")
        ranges.append((int(first), end))
    return lambda page: any(first <= page <= end for first, end in ranges)


def _in_folder(folder: str, given: str, left_out: Counter[str]) -> list[Source]:
    """Sources of the files directly inside a folder; counts what is left out.

    Whatever is called like an image is one, also where it then cannot be read: a link to nothing, a
    folder of such a name.
    """
    sources = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name.lower() in _COMPANIONS:
                continue
            if has_image_ending(entry.name):
                sources.append(Source(Path(entry.path)))
            elif entry.is_file() or entry.is_symlink() and not os.path.exists(entry.path):
                source = source_of(entry.path)
                if source.is_video or (entry.is_file() and has_image_content(entry.path)):
                    sources.append(source)
                else:
                    left_out[os.path.splitext(entry.name)[1].lower() or "without ending"] += 1
    if not sources:
        left = Sources([], left_out).left_out_text()
        raise FileNotFoundError(
            f"--input: the folder '{printable(given)}' has no image and no video. "
            + (f"{left} " if left else "")
            + "Images in folders inside are named by a pattern, such as "
            f"'{printable(given).rstrip('/')}/**/*.jpg'."
        )
    return sources


def source_of(path: str) -> Source:
    """An image file or a video, as its name or content says."""
    is_image = has_image_ending(path) or not is_video(path)
    return Source(Path(path), is_video_file=not is_image)


def _is_no_folder(path: str) -> bool:
    return not os.path.isdir(path) or has_image_ending(path)
