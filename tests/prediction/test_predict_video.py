"""rdsnet predict on videos and cameras."""

import cv2
import pytest
from helpers.predicting import OBJECTS, load_coco, picture
from PIL import Image

from rdsnet.prediction import sources


def write_video(path, frames, size=(96, 64), rate=12.0):
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
    for k in range(frames):
        video.write(picture(size[1], size[0], seed=k))
    video.release()


def test_video_gives_a_video_and_numbered_frames(predict, tmp_path):
    write_video(tmp_path / "clip.mp4", 5)
    Image.fromarray(picture()).save(tmp_path / "a.png")
    arguments = ["--format", "mp4,png,coco,csv,masks", "--score-threshold", "0"]
    assert predict(tmp_path / "clip.mp4", tmp_path / "a.png", arguments=arguments) == 0
    out = tmp_path / "out"
    assert {p.name for p in (out / "overlays").iterdir()} == {"clip.mp4", "a.png"}
    video = cv2.VideoCapture(str(out / "overlays" / "clip.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(12.0)
    shapes = []
    while True:
        there, image = video.read()
        if not there:
            break
        shapes.append(image.shape)
    assert len(shapes) == 5 and shapes[0][1] / shapes[0][0] == pytest.approx(1.5, abs=0.02)
    images, results = load_coco(out)
    assert [image.get("frame") for image in images["images"]] == [0, 1, 2, 3, 4, None]
    assert len(results) == 6 * OBJECTS
    assert len(list((out / "masks").iterdir())) == 6 and (out / "masks" / "clip_000004").is_dir()
    assert predict(tmp_path / "clip.mp4", arguments=[*arguments, "--max-frames", "2"]) == 0
    assert len(load_coco(out)[0]["images"]) == 2


def test_broken_and_cut_videos_are_reported(predict, tmp_path, capfd):
    write_video(tmp_path / "whole.avi", 40)
    data = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.mp4").write_text("this is no video")
    arguments = ["--format", "csv", "--opts", "TEST.DETECTIONS_PER_IMAGE", "1"]
    assert predict(tmp_path / "cut.avi", tmp_path / "text.mp4", arguments=arguments) == 1
    output = capfd.readouterr()
    assert "text.mp4 cannot be opened" in output.err and "cut.avi ends after" in output.err
    assert "2 files could not be read" in output.out


def test_camera_is_a_number(predict, tmp_path, monkeypatch):
    opened = []

    class Camera:
        """As cv2.VideoCapture, of a camera that can be unplugged."""

        def __init__(self, index):
            opened.append(index)
            self.images = 4

        def isOpened(self):  # noqa: N802
            return True

        def get(self, key):
            return 0.0

        def read(self):
            self.images -= 1
            return self.images >= 0, picture()

        def release(self):
            opened.append("released")

    monkeypatch.setattr(sources.cv2, "VideoCapture", Camera)
    arguments = ["--format", "coco", "--max-frames", "3"]
    assert predict(0, arguments=arguments) == 0
    assert opened == [0, "released"]
    images, _ = load_coco(tmp_path / "out")
    assert [(image["file_name"], image["frame"]) for image in images["images"]] == [
        ("camera 0", 0),
        ("camera 0", 1),
        ("camera 0", 2),
    ]


def test_labelme_is_for_image_files(predict, tmp_path, capsys):
    write_video(tmp_path / "clip.mp4", 2)
    for name in ("labelme", "cvat", "label-studio"):
        assert predict(tmp_path / "clip.mp4", arguments=["--format", name]) == 2
        assert f"{name} opens image files" in capsys.readouterr().err
