"""What the writers have in common."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from detectron2.structures import Instances

from rdsnet.prediction.sources import Frame


class Writer:
    """Writes the objects of one image after the other into a folder.

    What has been written is complete after every image (a video: when it ends), so that nothing is
    lost whatever comes later; before the first image nothing is touched, so that a run that finds
    none leaves the results of an earlier one.

    Args:
        output: the folder; made with the first image.
        names: of the classes; None: unknown.
        category_ids: of the classes.
    """

    files: tuple[str, ...]
    """What is written, relative to the folder."""
    takes_parts = False
    """Whether large images may come in parts: frames of one name with the objects of a part each,
    whose ``image`` has the right shape and no content."""

    reads_images = False
    """Whether the file of a frame is read once more, so that it has to be on this machine."""
    coordinates = "pixels"
    """Those of outlines: "pixels", or "map" where the format and the image have them."""

    def __init__(self, output: Path, names: list[str] | None, category_ids: list[int]) -> None:
        self.output, self.names, self.category_ids = output, names, category_ids
        self._has_begun = False

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._has_begun:
            self.end()

    def write(self, frame: Frame, instances: Instances) -> None:
        """The objects of an image, on the CPU."""
        if not self._has_begun:
            self.output.mkdir(parents=True, exist_ok=True)
            self.begin()
            self._has_begun = True
        self.add(frame, instances)

    def check(self, path: Path) -> None:
        """Before an image is predicted: raise ValueError where it cannot be written as asked."""

    def begin(self) -> None:
        """Before the first image: open what belongs to the whole run."""

    def add(self, frame: Frame, instances: Instances) -> None:
        """Write the objects of one image; what a format has to say."""
        raise NotImplementedError

    def end(self) -> None:
        """After the last image, or an error: close what :meth:`begin` has opened."""
