"""rdsnet predict: pages of image files are frames."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from predicting import OBJECTS, load_coco, picture, write_video

from rdsnet.cli import main
from rdsnet.commands.predict import LAST_PAGE, pages
from rdsnet.engine import prediction

COCO = ("--format", "coco", "--score-threshold", "0")


def save_stack(path: Path, number: int, format: str | None = None, **options) -> None:
    first, *others = (Image.fromarray(picture(seed=k)) for k in range(number))
    first.save(path, format, save_all=True, append_images=others, **options)


def frames(out: Path) -> list[tuple[str, int | None]]:
    images, _ = load_coco(out)
    return [(Path(i["file_name"]).name, i.get("frame")) for i in images["images"]]


@pytest.mark.parametrize("name", ["stack.tif", "moving.gif", "moving.png", "moving.webp"])
def test_every_page_has_results_with_its_number(name, predict, tmp_path):
    save_stack(tmp_path / name, 3)
    Image.fromarray(picture()).save(tmp_path / "one.png")
    arguments = ("--format", "csv,coco,png,masks,labelme", "--score-threshold", "0")
    assert predict(tmp_path / name, tmp_path / "one.png", arguments=arguments) == 0
    out, stem = tmp_path / "out", Path(name).stem
    assert frames(out) == [(name, 0), (name, 1), (name, 2), ("one.png", None)]
    with open(out / "objects.csv", newline="") as file:
        numbers = [(Path(row["file"]).name, row["frame"]) for row in csv.DictReader(file)]
    expected = [(name, str(k)) for k in range(3) for _ in range(OBJECTS)]
    assert numbers == expected + [("one.png", "")] * OBJECTS
    outputs = {f"{stem}_000000", f"{stem}_000001", f"{stem}_000002", "one"}
    assert {p.name for p in (out / "overlays").iterdir()} == {f"{n}.png" for n in outputs}
    assert {p.name for p in (out / "masks").iterdir()} == outputs
    content = json.loads((out / "labelme" / f"{stem}_000002.json").read_text())
    with (
        Image.open(out / "labelme" / content["imagePath"]) as page,
        Image.open(tmp_path / name) as file,
    ):
        file.seek(2)  # the page that the outlines belong to
        difference = np.asarray(page.convert("RGB")).astype(int) - np.asarray(file.convert("RGB"))
        assert abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("0", [0]),
        ("first", [0]),
        ("2-5", [2, 3, 4, 5]),
        ("4-", [4, 5, 6]),
        ("6,1-2,1", [1, 2, 6]),
        ("all", range(7)),
        ("5-99", [5, 6]),
    ],
)
def test_pages_are_chosen(given, expected, predict, tmp_path):
    save_stack(tmp_path / "stack.tif", 7)
    assert predict(tmp_path / "stack.tif", arguments=(*COCO, "--pages", given)) == 0
    assert frames(tmp_path / "out") == [("stack.tif", k) for k in expected]


def test_frames_of_a_video_are_chosen_in_the_same_way(predict, tmp_path, capsys):
    write_video(tmp_path / "clip.mp4", 6)
    arguments = ("--format", "coco", "--pages", "1,3-4")
    assert predict(tmp_path / "clip.mp4", arguments=arguments) == 0
    assert frames(tmp_path / "out") == [("clip.mp4", k) for k in (1, 3, 4)]
    assert predict(tmp_path / "clip.mp4", arguments=("--format", "coco", "--pages", "20")) == 1
    assert "clip.mp4 has no frame that --pages names: the last is 5" in capsys.readouterr().err


def test_a_page_that_a_file_does_not_have_is_said(predict, tmp_path, capsys):
    save_stack(tmp_path / "stack.tif", 3)
    Image.fromarray(picture()).save(tmp_path / "one.png")
    files = tmp_path / "stack.tif", tmp_path / "one.png"
    assert predict(*files, arguments=(*COCO, "--pages", "2-4")) == 1
    output = capsys.readouterr()
    assert "one.png has no page that --pages names: the first is 0, the last 0" in output.err
    assert "1 file could not be read" in output.out
    assert frames(tmp_path / "out") == [("stack.tif", 2)]


def test_at_most_so_many_pages_are_read(predict, tmp_path):
    save_stack(tmp_path / "stack.tif", 5)
    assert predict(tmp_path / "stack.tif", arguments=(*COCO, "--max-frames", "2")) == 0
    assert frames(tmp_path / "out") == [("stack.tif", 0), ("stack.tif", 1)]


@pytest.mark.parametrize("given", ["", "-1", "5-2", "one", "0,", "1.5", "2--3"])
def test_what_names_no_pages_is_explained(given, predict, capsys):
    with pytest.raises(SystemExit):
        predict("a.tif", arguments=(f"--pages={given}",))
    assert f"'{given}' names no pages" in capsys.readouterr().err


def test_ranges_of_pages_are_read_from_the_command_line():
    assert pages("0, 2 - 5,7-") == [range(0, 1), range(2, 6), range(7, LAST_PAGE + 1)]


def test_side_pictures_of_a_photograph_are_read_when_asked_for(predict, tmp_path, capsys):
    for name in ("phone.jpg", "other.jpg"):
        save_stack(tmp_path / name, 2, "MPO")
    photos = tmp_path / "phone.jpg", tmp_path / "other.jpg"
    assert predict(*photos, arguments=COCO) == 0
    assert frames(tmp_path / "out") == [("phone.jpg", None), ("other.jpg", None)]
    said = capsys.readouterr().out
    assert said.count("--pages all reads them") == 1
    assert "'phone.jpg' and 1 other file have more pictures" in said
    assert predict(*photos, arguments=(*COCO, "--pages", "all")) == 0
    assert frames(tmp_path / "out") == [(p.name, k) for p in photos for k in (0, 1)]
    assert "--pages" not in capsys.readouterr().out


def test_pages_that_are_channels_are_called_so(predict, tmp_path, capsys):
    array = np.stack([picture()[..., k] for k in range(3)])
    options = {"photometric": "minisblack", "metadata": {"axes": "CYX"}, "ome": True}
    tifffile.imwrite(tmp_path / "cells.ome.tif", array, **options)
    assert predict(tmp_path / "cells.ome.tif", arguments=COCO) == 0
    assert "'cells.ome.tif' has channels as pages" in capsys.readouterr().out
    assert len(frames(tmp_path / "out")) == 3


def test_pages_of_other_sizes_have_their_own(predict, tmp_path):
    with tifffile.TiffWriter(tmp_path / "album.tif") as file:
        for size in ((60, 90), (40, 30), (50, 80)):
            file.write(picture(*size), photometric="rgb", metadata=None)
    assert predict(tmp_path / "album.tif", arguments=("--format", "coco,png,masks")) == 0
    images, _ = load_coco(tmp_path / "out")
    assert [(i["height"], i["width"]) for i in images["images"]] == [(60, 90), (40, 30), (50, 80)]


def test_a_damaged_page_does_not_take_the_others_with_it(predict, tmp_path, capsys):
    with tifffile.TiffWriter(tmp_path / "stack.tif") as file:
        for k in range(4):
            file.write(picture(seed=k), photometric="rgb", compression="zlib", metadata=None)
    content = bytearray((tmp_path / "stack.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "stack.tif") as file:
        place = file.pages[2].dataoffsets[0]
    content[place : place + 20] = bytes(20)
    (tmp_path / "stack.tif").write_bytes(content)
    assert predict(tmp_path / "stack.tif", arguments=COCO) == 1
    output = capsys.readouterr()
    assert "page 2: " in output.err and output.err.count("skipped") == 1
    assert "1 file could not be read" in output.out
    assert [k for _, k in frames(tmp_path / "out")] == [0, 1, 3]


def test_a_stack_that_is_cut_off_is_read_to_there_and_reported(predict, tmp_path, capsys):
    save_stack(tmp_path / "stack.tif", 5)
    content = (tmp_path / "stack.tif").read_bytes()
    (tmp_path / "stack.tif").write_bytes(content[: int(len(content) * 0.7)])
    assert predict(tmp_path / "stack.tif", arguments=COCO) == 1
    assert "stack.tif cannot be read: " in capsys.readouterr().err
    assert [k for _, k in frames(tmp_path / "out")] == [0, 1, 2]


def test_pages_are_read_one_at_a_time(model_files, tmp_path, monkeypatch):
    """None is kept: by the time of the next, the one before last can be no more."""
    save_stack(tmp_path / "stack.tif", 6)
    import weakref

    alive, most = [], []
    original = prediction.predict_image

    def watch(predictor, image, score_threshold):
        owner = image if image.base is None else image.base
        alive.append(weakref.ref(owner))
        most.append(sum(reference() is not None for reference in alive))
        return original(predictor, image, score_threshold)

    monkeypatch.setattr(prediction, "predict_image", watch)
    words = ["predict", "--config-file", model_files["config"], "--weights", model_files["weights"]]
    words += ["--input", str(tmp_path / "stack.tif"), "--output", str(tmp_path / "out")]
    assert main([*words, "--format", "csv"]) == 0
    assert len(most) == 6 and max(most) <= 2
