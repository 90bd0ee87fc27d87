"""Overlays: images with their objects drawn."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from detectron2.structures import Instances

from rdsnet.data.findings import printable
from rdsnet.engine.prediction_frames import Frame
from rdsnet.engine.video import opencv_path
from rdsnet.engine.writers.writer import Writer
from rdsnet.visualization import draw_objects, objects_from_instances


class PictureWriter(Writer):
    """``overlays/NAME.png``: the image with its objects drawn; of a video ``overlays/NAME.mp4``.

    Pages of a file get a picture each, ``overlays/NAME_000000.png``.
    """

    files = ("overlays/",)

    def __enter__(self) -> PictureWriter:
        self._video: tuple[str, cv2.VideoWriter] | None = None
        return self

    def __exit__(self, *error: object) -> None:
        self._close_video()

    def write(self, frame: Frame, instances: Instances) -> None:
        folder = self.folder("overlays")
        objects = objects_from_instances(instances, self.names)
        picture = draw_objects(frame.image[:, :, ::-1], objects)[:, :, ::-1]
        if frame.video:
            self._add_to_video(folder / f"{frame.video}.mp4", frame, picture)
        else:
            write_png(folder / f"{frame.name}.png", picture)

    def _add_to_video(self, file: Path, frame: Frame, picture: np.ndarray) -> None:
        height, width = (side // 2 * 2 for side in picture.shape[:2])  # as video formats want it
        if self._video is None or self._video[0] != frame.video:
            self._close_video()
            # MPEG-4: OpenCV as pip installs it cannot write H.264.
            code = cv2.VideoWriter_fourcc(*"mp4v")
            with opencv_path(file) as path:
                video = cv2.VideoWriter(path, code, frame.frames_per_second, (width, height))
            if not video.isOpened():
                raise OSError(f"OpenCV cannot write the video {printable(file)}")
            self._video = frame.video, video
        self._video[1].write(np.ascontiguousarray(picture[:height, :width]))

    def _close_video(self) -> None:
        if self._video is not None:
            self._video[1].release()
            self._video = None


def write_png(file: Path, picture: np.ndarray) -> None:
    """Write a picture (H, W) or (H, W, 3) BGR, uint8. Raises OSError; cv2.imwrite would not."""
    file.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
