"""rdsnet predict on files as people have them: odd names, stacks, folders with more than images."""

import base64
import csv
import json
import os
import sys
from collections import Counter

import cv2
import numpy as np
import pytest
import tifffile
from helpers.predicting import OBJECTS, load_coco, picture, seen_images
from PIL import Image

from rdsnet.prediction.output_names import MOST_BYTES, OutputNames, as_file_name, numbered
from rdsnet.prediction.sources import chosen_pages, find_sources
from rdsnet.prediction.writers.coco import JsonList
from rdsnet.prediction.writers.pictures import PictureWriter

ALL = ["--format", "png,coco,csv,masks", "--score-threshold", "0"]
needs_bytes = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux allows file names that are no text"
)


def save(path, seed=0, **options):
    Image.fromarray(picture(seed=seed)).save(path, **options)


def write_video(path, frames=3, size=(96, 64)):
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, size)
    for k in range(frames):
        video.write(picture(size[1], size[0], seed=k))
    video.release()


def rows_of(out):
    with open(out / "objects.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------ folders


def test_a_folder_is_all_that_can_be_read_in_it(predict, tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, kind in (("a.jfif", "JPEG"), ("b.jpe", "JPEG"), ("c.jp2", "JPEG2000"), ("d", "PNG")):
        save(folder / name, format=kind)
    save(folder / "e.avif")
    save(folder / "f.dat", format="WEBP")  # known by its content
    write_video(folder / "g.mov")
    write_video(tmp_path / "h.avi")
    (tmp_path / "h.avi").rename(folder / "h.bin")  # a video by its content
    for name in ("notes.txt", "more.TXT", "labels.json", "README"):
        (folder / name).write_text("no picture")
    for name in ("._a.jfif", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (folder / name).write_bytes(b"\0\0\0\1Bud1")
    arguments = ["--format", "coco", "--opts", "TEST.DETECTIONS_PER_IMAGE", "1"]
    assert predict(folder, arguments=arguments) == 0
    images = load_coco(tmp_path / "out")[0]["images"]
    counts = Counter(os.path.basename(image["file_name"]) for image in images)
    single = dict.fromkeys(("a.jfif", "b.jpe", "c.jp2", "d", "e.avif", "f.dat"), 1)
    assert counts == {**single, "g.mov": 3, "h.bin": 3}
    output = capsys.readouterr()
    assert "4 other files in the folders, neither image nor video: .txt 2" in output.out
    assert ".json 1" in output.out and "without ending 1" in output.out
    assert "skipped" not in output.err


def test_images_that_are_not_there_are_missing_images(predict, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    save(folder / "there.png")
    (folder / "broken.png").symlink_to("../store/key.png")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "folder.tif").mkdir()
    (folder / "empty.png").write_bytes(b"")
    os.mkfifo(folder / "pipe.png")  # reading from it would never end
    assert predict(folder, arguments=["--format", "coco"]) == 1
    output = capsys.readouterr()
    for name in ("broken.png", "loop.jpg", "folder.tif", "empty.png", "pipe.png"):
        assert name in output.err
    assert "../store/key.png" in output.err and "5 files could not be read" in output.out
    assert [os.path.basename(i["file_name"]) for i in load_coco(tmp_path / "out")[0]["images"]] == [
        "there.png"
    ]
    # The same when they are named.
    assert predict(folder / "broken.png", arguments=["--format", "coco"]) == 1
    assert "broken.png" in capsys.readouterr().err


def test_a_folder_without_pictures_says_what_is_in_it(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"no image and no video. 1 other file .* .txt 1"):
        find_sources([str(tmp_path)])


# -------------------------------------------------------------------------------- names


@needs_bytes
def test_names_that_are_no_text_are_read_and_written(predict, tmp_path, capfd):
    raw = os.fsencode(tmp_path)
    save(raw + b"/caf\xe9.png")
    write_video(tmp_path / "clip.mp4")
    os.rename(tmp_path / "clip.mp4", raw + b"/cl\xffip.mp4")
    save(tmp_path / "two\nlines.png")
    names = [os.fsdecode(raw + name) for name in (b"/caf\xe9.png", b"/cl\xffip.mp4")]
    assert predict(*names, tmp_path / "two\nlines.png", arguments=ALL) == 0
    out = tmp_path / "out"
    overlays = {path.name for path in (out / "overlays").iterdir()}
    assert overlays == {"caf%E9.png", "cl%FFip.mp4", "two%0Alines.png"}
    files = {row["file"].rpartition("/")[2] for row in rows_of(out)}
    assert files == {r"caf\xe9.png", r"cl\xffip.mp4", r"two\nlines.png"}
    images, results = load_coco(out)
    assert len(images["images"]) == 5 and len(results) == 5 * OBJECTS
    found = {os.fsencode(os.path.basename(image["file_name"])) for image in images["images"]}
    assert found == {b"caf\xe9.png", b"cl\xffip.mp4", b"two\nlines.png"}


@needs_bytes
def test_an_output_folder_may_have_any_name(predict, tmp_path, model_files):
    from rdsnet.cli import main

    write_video(tmp_path / "clip.mp4")
    out = os.fsdecode(os.fsencode(tmp_path) + b"/ou\xe9t")
    words = ["predict", "--config-file", model_files["config"], "--weights"]
    words += [model_files["weights"], "--input", str(tmp_path / "clip.mp4"), "--output", out]
    assert main(words) == 0
    assert os.path.getsize(os.path.join(out, "overlays", "clip.mp4")) > 0


def test_long_names_are_cut_off_and_stay_different(predict, tmp_path):
    stem = "ü" * 120  # 240 bytes; with ".png" the name fits, with a number it would not
    save(tmp_path / f"{stem}a.png")
    save(tmp_path / f"{stem}b.png", seed=1)
    assert predict(tmp_path / f"{stem}a.png", tmp_path / f"{stem}b.png", arguments=ALL) == 0
    names = sorted(path.stem for path in (tmp_path / "out" / "overlays").iterdir())
    assert names == ["ü" * (MOST_BYTES // 2), "ü" * (MOST_BYTES // 2) + "_2"]


def test_accents_written_in_two_ways_are_two_files(predict, tmp_path):
    save(tmp_path / "caf\u00e9.png")
    save(tmp_path / "cafe\u0301.png", seed=1)
    assert predict(tmp_path / "caf\u00e9.png", tmp_path / "cafe\u0301.png", arguments=ALL) == 0
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 2
    assert "_2" in "".join(path.name for path in (tmp_path / "out" / "masks").iterdir())


@pytest.mark.parametrize("video_first", [True, False])
def test_frames_never_overwrite_a_picture_called_as_one(predict, tmp_path, video_first):
    write_video(tmp_path / "walk.mp4")
    save(tmp_path / "walk_000001.png")
    inputs = [tmp_path / "walk.mp4", tmp_path / "walk_000001.png"]
    assert predict(*(inputs if video_first else inputs[::-1]), arguments=ALL) == 0
    sizes = Counter()
    for folder in (tmp_path / "out" / "masks").iterdir():
        masks = list(folder.glob("*.png"))
        assert len(masks) == OBJECTS
        sizes[cv2.imread(str(masks[0])).shape[:2]] += 1
    assert sizes == {(64, 96): 3, (60, 90): 1}


@pytest.mark.parametrize("seed", range(3))
def test_names_of_a_run_are_all_different(seed):
    rng = np.random.default_rng(seed)
    stems = ["a", "A", "a_000001", "a_2", "a_2_000001", "a_000001_000002", "b"]
    names, given = OutputNames(), []
    for _ in range(40):
        stem, is_sequence = stems[rng.integers(len(stems))], bool(rng.integers(2))
        name = names.new(stem, is_sequence)
        given += [numbered(name, k) for k in range(4)] if is_sequence else [name]
    assert len({name.lower() for name in given}) == len(given)


def test_a_name_is_never_empty():
    assert as_file_name("") == "_" and as_file_name("ok name") == "ok name"


# ------------------------------------------------------------------------------- stacks


def stack(tmp_path, name="stack.tif", pages=4, deep=False):
    """Grey pages, also as a list of (60, 90) uint8, or uint16 with all levels 257 times as high."""
    images = [picture(seed=k)[..., 0] for k in range(pages)]
    images = [image.astype(np.uint16) * 257 for image in images] if deep else images
    tifffile.imwrite(tmp_path / name, np.stack(images), photometric="minisblack")
    return images


@pytest.mark.parametrize("deep", [False, True])
def test_pages_are_frames(predict, tmp_path, monkeypatch, deep):
    pages, seen = stack(tmp_path, deep=deep), seen_images(monkeypatch)
    assert predict(tmp_path / "stack.tif", arguments=ALL) == 0
    for page, image in zip(pages, seen, strict=True):
        assert (image == (page >> 8 if deep else page)[..., None]).all()
    images, _ = load_coco(tmp_path / "out")
    assert [image["frame"] for image in images["images"]] == [0, 1, 2, 3]
    assert {row["frame"] for row in rows_of(tmp_path / "out")} == {"0", "1", "2", "3"}
    names = {f"stack_{k:06d}" for k in range(4)}
    assert {path.stem for path in (tmp_path / "out" / "overlays").iterdir()} == names
    assert {path.name for path in (tmp_path / "out" / "masks").iterdir()} == names


@pytest.mark.parametrize("name", ["moving.gif", "moving.png", "moving.webp"])
def test_pictures_of_an_animation_are_frames(predict, tmp_path, name):
    frames = [Image.fromarray(picture(seed=k)) for k in range(3)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert predict(tmp_path / name, arguments=["--format", "coco"]) == 0
    images, _ = load_coco(tmp_path / "out")
    assert [image["frame"] for image in images["images"]] == [0, 1, 2]


def test_pages_are_chosen(predict, tmp_path, capsys):
    stack(tmp_path, pages=6)
    save(tmp_path / "single.png")
    for text, expected in (("first", [0]), ("2-3,5", [2, 3, 5]), ("4-", [4, 5]), ("all", range(6))):
        arguments = ["--format", "coco", "--pages", text]
        assert predict(tmp_path / "stack.tif", tmp_path / "single.png", arguments=arguments) == 0
        images = load_coco(tmp_path / "out")[0]["images"]
        assert [image.get("frame") for image in images] == [*expected, None]
    arguments = ["--format", "coco", "--pages", "9"]
    assert predict(tmp_path / "stack.tif", arguments=arguments) == 1
    assert "has pages 0 to 5; --pages names none of them" in capsys.readouterr().err
    assert predict(tmp_path / "stack.tif", arguments=["--pages", "x"]) == 2
    assert "'x' names no pages" in capsys.readouterr().err


def test_chosen_pages_refuses_what_it_does_not_know():
    for text in ("", "-", "3-1", "1,,2", "-3", "last"):
        with pytest.raises(ValueError, match="pages"):
            chosen_pages(text)


def test_labelme_gets_later_pages_inside_of_its_file(predict, tmp_path):
    pages = stack(tmp_path, pages=2)
    assert predict(tmp_path / "stack.tif", arguments=["--format", "labelme"]) == 0
    files = sorted((tmp_path / "out" / "labelme").iterdir())
    first, second = (json.loads(path.read_text()) for path in files)
    assert first["imageData"] is None
    data = np.frombuffer(base64.b64decode(second["imageData"]), np.uint8)
    assert (cv2.imdecode(data, cv2.IMREAD_COLOR) == pages[1][..., None]).all()


# ---------------------------------------------------------------------------- nothing lost


def test_what_was_written_is_whole_after_every_image(tmp_path):
    listed = JsonList(tmp_path / "list.json", '{"a": 1, "list": ', "}")
    for k in range(3):
        assert json.loads((tmp_path / "list.json").read_text())["list"] == list(range(2 * k))
        listed.extend([2 * k, 2 * k + 1])
    listed.close()
    assert json.loads((tmp_path / "list.json").read_text()) == {"a": 1, "list": [*range(6)]}


def test_a_run_that_finds_no_image_leaves_earlier_results(predict, tmp_path):
    save(tmp_path / "good.png")
    assert predict(tmp_path / "good.png", arguments=ALL) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    (tmp_path / "bad.mp4").write_text("no video")
    assert predict(tmp_path / "bad.mp4", arguments=ALL) == 1
    after = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert after == before


def test_results_of_finished_images_outlive_the_process(predict, tmp_path, monkeypatch):
    """As after a crash inside of a library: nothing is closed."""
    for k in range(3):
        save(tmp_path / f"{k}.png", seed=k)
    original, calls, seen = PictureWriter.add, [], []

    def crash(*arguments):
        calls.append(None)
        if len(calls) == 3:
            seen.append((load_coco(tmp_path / "out"), rows_of(tmp_path / "out")))
        return original(*arguments)

    monkeypatch.setattr(PictureWriter, "add", crash)  # of all formats the first
    assert predict(*(tmp_path / f"{k}.png" for k in range(3)), arguments=ALL) == 0
    (((images, results), rows),) = seen
    assert len(images["images"]) == 2 and len(results) == len(rows) == 2 * OBJECTS


def test_pages_before_the_place_where_a_stack_is_cut_off_are_kept(predict, tmp_path, capsys):
    stack(tmp_path, pages=5)
    whole = (tmp_path / "stack.tif").read_bytes()
    pages = [Image.fromarray(picture(seed=k)) for k in range(5)]
    pages[0].save(tmp_path / "cut.tif", save_all=True, append_images=pages[1:])
    whole = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    assert predict(tmp_path / "cut.tif", arguments=["--format", "coco"]) == 1
    assert "cut.tif" in capsys.readouterr().err
    images = load_coco(tmp_path / "out")[0]["images"]
    assert 0 < len(images) < 5


def test_a_pipe_or_a_folder_called_like_a_video_does_not_hang(predict, tmp_path, capsys):
    folder = tmp_path / "clips"
    folder.mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "link.mov").symlink_to("nowhere.mov")
    save(folder / "a.png")
    assert predict(folder, arguments=["--format", "coco"]) == 1
    error = capsys.readouterr().err
    assert "link.mov" in error and "nowhere.mov" in error
