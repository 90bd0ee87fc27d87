"""The formats "png" and "mp4": images and videos with their objects drawn."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from detectron2.structures import Instances

from rdsnet.data.channels import picture_of
from rdsnet.data.findings import printable
from rdsnet.data.videos import path_for_opencv
from rdsnet.prediction.sources import Frame
from rdsnet.prediction.writers.writer import Writer
from rdsnet.visualization import draw_objects, objects_from_instances


class PictureWriter(Writer):
    """``overlays/NAME.png``: the image with its objects drawn; of a video ``overlays/NAME.mp4``."""

    files = ("overlays/",)

    def begin(self) -> None:
        self._video: tuple[str, cv2.VideoWriter] | None = None

    def end(self) -> None:
        self._close_video()

    def add(self, frame: Frame, instances: Instances) -> None:
        folder = self.output / "overlays"
        folder.mkdir(exist_ok=True)
        file = folder / f"{frame.video or frame.name}{'.mp4' if frame.video else '.png'}"
        if frame.index == 0 and file.exists() and frame.path.exists() and file.samefile(frame.path):
            raise ValueError(
                f"'{printable(file)}' would be overwritten by its own overlay: choose another "
                "--output, or other --input files."
            )
        objects = objects_from_instances(instances, self.names)
        picture = draw_objects(picture_of(frame.image)[:, :, ::-1], objects)[:, :, ::-1]
        if frame.video:
            self._add_to_video(file, frame, picture)
        else:
            encoded = cv2.imencode(".png", picture)[1]
            file.write_bytes(encoded.tobytes())  # cv2.imwrite would report no error

    def _add_to_video(self, file: Path, frame: Frame, picture: np.ndarray) -> None:
        height, width = (side // 2 * 2 for side in picture.shape[:2])  # as video formats want it
        if self._video is None or self._video[0] != frame.video:
            self._close_video()
            # MPEG-4: OpenCV as pip installs it cannot write H.264.
            code = cv2.VideoWriter_fourcc(*"mp4v")
            with path_for_opencv(file) as path:
                video = cv2.VideoWriter(path, code, frame.frames_per_second, (width, height))
            if not video.isOpened():
                raise OSError(f"OpenCV cannot write the video {printable(file)}")
            self._video = frame.video, video
        self._video[1].write(np.ascontiguousarray(picture[:height, :width]))

    def _close_video(self) -> None:
        if self._video is not None:
            self._video[1].release()
            self._video = None
