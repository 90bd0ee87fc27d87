"""rdsnet predict: which files of a folder are read, what is said about the others."""

import os
from pathlib import Path
from types import SimpleNamespace

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image, features
from predicting import load_coco, picture, write_video

from rdsnet.data import image_formats
from rdsnet.engine import video
from rdsnet.engine.prediction_input import find_sources

CSV = ("--format", "csv,coco", "--score-threshold", "0")


def found(folder) -> dict[str, bool]:
    """Names of the sources in a folder, and whether each is a video."""
    return {s.path.name: s.is_video for s in find_sources([str(folder)]).sources}


def write_images(folder: Path) -> set[str]:
    """A picture in every common format; returns the names."""
    image, rgb = Image.fromarray(picture()), picture()
    saved = {
        "camera.jfif": "JPEG",
        "camera.jpe": "JPEG",
        "camera.JPG": "JPEG",
        "moving.apng": "PNG",
        "scan.tiff": "TIFF",
        "page.webp": "WEBP",
        "old.bmp": "BMP",
        "grey.pgm": "PPM",
        "game.tga": "TGA",
        "icon.ico": "ICO",
    }
    for name, format in saved.items():
        (image.convert("L") if name == "grey.pgm" else image).save(folder / name, format)
    image.save(folder / "stereo.mpo", "MPO", save_all=True, append_images=[image])
    (folder / "flight.jp2").write_bytes(imagecodecs.jpeg2k_encode(rgb, level=0))
    names = {*saved, "stereo.mpo", "flight.jp2"}
    if features.check("avif"):
        image.save(folder / "phone.avif")
        names.add("phone.avif")
    return names


def test_a_folder_is_all_images_and_videos_in_it(predict, tmp_path, capsys):
    folder = tmp_path / "holiday"
    folder.mkdir()
    names = write_images(folder)
    for name in ("clip.mp4", "clip.avi", "clip.mkv", "clip.mov"):
        write_video(folder / name, 2)
    for name in ("a.txt", "b.txt", "labels.json", "run.sh"):
        (folder / name).write_text("1 0.5 0.5 0.1 0.1")
    (folder / "weights.npz").write_bytes(b"PK\3\4" + bytes(100))
    (folder / "inner").mkdir()
    for name in ("._camera.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png"):
        (folder / name).write_bytes(b"\0\5\26\7" + bytes(80))
    assert predict(folder, arguments=CSV) == 0
    output = capsys.readouterr()
    images, _ = load_coco(tmp_path / "out")
    read = {Path(image["file_name"]).name for image in images["images"]}
    assert read == {*names, "clip.mp4", "clip.avi", "clip.mkv", "clip.mov"}
    assert "5 other files were left out: .txt 2, .json 1, .npz 1, .sh 1." in output.out
    assert "skipped" not in output.err
    assert "'stereo.mpo' has more pictures beside the main one" in output.out


def test_the_content_counts_where_the_name_says_nothing(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "IMG_0001", "PNG")
    Image.fromarray(picture()).save(tmp_path / "scan.0001", "TIFF")
    Image.fromarray(picture()).save(tmp_path / "really_png.jpg", "PNG")
    write_video(tmp_path / "clip.mp4", 2)
    (tmp_path / "clip.mp4").rename(tmp_path / "capture.rec")
    (tmp_path / "README").write_text("P6 is how a picture may begin")
    (tmp_path / "data.bin1").write_bytes(np.random.default_rng(0).bytes(5000))
    assert found(tmp_path) == {
        "IMG_0001": False,
        "scan.0001": False,
        "really_png.jpg": False,
        "capture.rec": True,
    }
    assert find_sources([str(tmp_path)]).left_out == {"without ending": 1, ".bin1": 1}


def test_files_that_are_named_are_told_apart_by_their_content(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "picture.mp4", "PNG")
    write_video(tmp_path / "clip.avi", 2)
    (tmp_path / "clip.avi").rename(tmp_path / "clip.dat")
    sources = find_sources([str(tmp_path / "picture.mp4"), str(tmp_path / "clip.dat")]).sources
    assert [source.is_video for source in sources] == [False, True]


def test_few_files_of_an_ending_are_tried_as_videos(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(video.cv2, "VideoCapture", lambda name, *_: tried.append(name) or Closed())
    for k in range(20):
        (tmp_path / f"{k:02d}.npy2").write_bytes(b"\x93NUMPY" + bytes(50))
    Image.fromarray(picture()).save(tmp_path / "a.png")
    assert found(tmp_path) == {"a.png": False} and len(tried) == 3


class Closed:
    """A video that could not be opened."""

    def isOpened(self):  # noqa: N802
        return False

    def release(self):
        pass


@pytest.mark.parametrize("given", ["folder", "pattern", "names"])
def test_missing_images_are_reported_by_name_and_counted(given, predict, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(picture()).save(photos / "there.png")
    (photos / "gone.png").symlink_to("../../.annex/3f/key.png")
    (photos / "lost.mp4").symlink_to(tmp_path / "unmounted" / "lost.mp4")
    (photos / "directory.jpg").mkdir()
    names = ["directory.jpg", "gone.png", "lost.mp4", "there.png"]
    inputs = {
        "folder": [photos],
        "pattern": [photos / "*"],
        "names": [photos / name for name in names if name != "directory.jpg"],
    }
    missing = len(names) - 1 if given != "names" else 2
    assert predict(*inputs[given], arguments=CSV) == 1
    output = capsys.readouterr()
    assert f"{missing} files could not be read" in output.out
    assert "gone.png does not exist: it is a link to ../../.annex/3f/key.png" in output.err
    assert "video" in output.err and "lost.mp4 does not exist: it is a link" in output.err
    if given != "names":
        assert "directory.jpg is a folder, not a file" in output.err
    images, _ = load_coco(tmp_path / "out")
    assert [Path(image["file_name"]).name for image in images["images"]] == ["there.png"]


def test_files_without_permission_are_reported(predict, tmp_path, capsys, monkeypatch):
    Image.fromarray(picture()).save(tmp_path / "secret.png")
    (tmp_path / "secret.png").chmod(0)
    if os.access(tmp_path / "secret.png", os.R_OK):  # the superuser reads everything

        def forbid(path, *_):
            raise PermissionError(13, "Permission denied", path)

        monkeypatch.setattr("rdsnet.data.images.PathManager", SimpleNamespace(open=forbid))
    assert predict(tmp_path, arguments=CSV) == 1
    assert "secret.png may not be read: you lack the permission" in capsys.readouterr().err


def test_a_folder_without_images_says_what_is_in_it(predict, tmp_path, capsys):
    (tmp_path / "notes").mkdir()
    for name in ("a.md", "b.md", "c.csv"):
        (tmp_path / "notes" / name).write_text("no image")
    assert predict(tmp_path / "notes") == 2
    message = capsys.readouterr().err
    assert "has no images or videos. 3 other files were left out: .md 2, .csv 1." in message
    assert "notes/**/*.jpg" in message


def test_heic_needs_a_package_and_says_which(predict, tmp_path, capsys, monkeypatch):
    def without_heif(name):
        return None

    monkeypatch.setattr(image_formats, "find_spec", without_heif)
    image_formats.pillow_formats.cache_clear()
    image_formats.image_endings.cache_clear()
    try:
        content = b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(200)
        (tmp_path / "IMG_7.HEIC").write_bytes(content)
        (tmp_path / "IMG_8.jpg").write_bytes(content)  # so some programs name them
        assert predict(tmp_path, arguments=CSV) == 1
    finally:
        monkeypatch.undo()
        image_formats.pillow_formats.cache_clear()
        image_formats.image_endings.cache_clear()
    errors = capsys.readouterr().err
    for name in ("IMG_7.HEIC", "IMG_8.jpg"):
        assert f"{name} is a HEIC photo" in errors
    assert "pip install pillow-heif" in errors


def test_what_pillow_would_run_or_cannot_show_is_not_asked_for():
    formats, endings = image_formats.pillow_formats(), image_formats.image_endings()
    assert {"JPEG", "PNG", "GIF", "WEBP"} <= set(formats)
    assert not {"EPS", "WMF", "HDF5", "GRIB", "MPEG", "TIFF"} & set(formats)
    assert {".jpg", ".jfif", ".jpe", ".mpo", ".apng", ".jp2", ".tif", ".tiff"} <= endings
    assert not {".eps", ".ps", ".pdf", ".h5", ".mpg", ".svg", ".txt"} & endings


def test_a_pattern_means_no_folders_and_no_companions(tmp_path):
    (tmp_path / "a" / "inner").mkdir(parents=True)
    for name in ("a/1.png", "a/Thumbs.db", "a/inner/2.png"):
        (tmp_path / name).write_bytes(b"x")
    sources = find_sources([str(tmp_path / "**")]).sources
    assert [source.path.name for source in sources] == ["1.png", "2.png"]


def test_names_with_brackets_are_files_before_they_are_patterns(tmp_path):
    cv2.imwrite(str(tmp_path / "cell[1].png"), picture())
    sources = find_sources([str(tmp_path / "cell[1].png")]).sources
    assert [source.path.name for source in sources] == ["cell[1].png"]
