"""What the writers have in common."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from detectron2.structures import Instances

from rdsnet.engine.prediction_frames import Frame


class Writer:
    """Writes the objects of every image in one format.

    A context manager, which closes its files. Text files are UTF-8; file names that are none are
    written with escapes, ``\\\\udce9`` for the byte E9, as Python's json does: in JSON they stay
    the names.

    Args:
        output: the folder to write into.
        names: of the classes; None: unknown.
        category_ids: id of every class in the data.

    Attributes:
        files: what it writes, relative to ``output``; folders end in a slash.
        why_no_videos: the message about videos, for a format of image files alone.
    """

    files: tuple[str, ...]
    why_no_videos = ""

    def __init__(self, output: Path, names: list[str] | None, category_ids: list[int]) -> None:
        self.output, self.names, self.category_ids = output, names, category_ids

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files."""

    def write(self, frame: Frame, instances: Instances) -> None:
        """Add an image with its objects, best first, on the CPU."""
        raise NotImplementedError

    def folder(self, *names: str) -> Path:
        """A folder inside of the output folder, made if missing."""
        folder = self.output.joinpath(*names)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
