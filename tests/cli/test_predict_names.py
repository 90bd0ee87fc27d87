"""rdsnet predict: names that are no text, too long, or equal, and results that outlive a crash."""

import csv
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import cv2
import pytest
from PIL import Image
from predicting import OBJECTS, load_coco, picture, write_video

from rdsnet.data.findings import printable
from rdsnet.engine import prediction
from rdsnet.engine.output_names import LONGEST, OutputNames, with_number

ALL = ("--format", "csv,coco,png,masks", "--score-threshold", "0")


def saved(folder: Path, name: bytes) -> bytes:
    """A picture under a name of bytes; gives the path."""
    Image.fromarray(picture()).save(folder / "plain.png")
    path = os.fsencode(folder) + b"/" + name
    os.rename(folder / "plain.png", path)
    return path


def saved_video(folder: Path, name: bytes, frames: int = 3) -> bytes:
    write_video(folder / "plain.mp4", frames)
    path = os.fsencode(folder) + b"/" + name
    os.rename(folder / "plain.mp4", path)
    return path


def rows(out: Path) -> list[dict]:
    with open(out / "objects.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_names_that_are_no_text_have_all_outputs(predict, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    image = saved(folder, b"stra\xdfe.png")  # as Latin-1 has it
    video = saved_video(folder, b"fl\xfcsse.mp4")
    assert predict(folder, arguments=ALL) == 0
    out = tmp_path / "out"
    overlays = os.listdir(os.fsencode(out / "overlays"))
    assert sorted(overlays) == [b"fl\xfcsse.mp4", b"stra\xdfe.png"]
    assert len(os.listdir(out / "masks" / os.fsdecode(b"stra\xdfe"))) == OBJECTS
    assert len(os.listdir(out / "masks")) == 4
    images, results = load_coco(out)
    assert {os.fsencode(i["file_name"]) for i in images["images"]} == {image, video}
    assert len(results) == 4 * OBJECTS
    files = {row["file"].rpartition("/")[2] for row in rows(out)}
    assert files == {"stra\\udcdfe.png", "fl\\udcfcsse.mp4"}
    link = tmp_path / "written.mp4"
    link.symlink_to(os.fsdecode(os.fsencode(out) + b"/overlays/fl\xfcsse.mp4"))
    assert cv2.VideoCapture(str(link)).get(cv2.CAP_PROP_FRAME_COUNT) == 3
    arguments = ("--format", "labelme", "--score-threshold", "0")
    assert predict(os.fsdecode(image), arguments=arguments) == 0
    content = json.loads((out / "labelme" / os.fsdecode(b"stra\xdfe.json")).read_text())
    assert (out / "labelme" / content["imagePath"]).resolve() == Path(os.fsdecode(image)).resolve()


def test_messages_about_such_names_are_on_one_line(predict, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"n\xe4h.png", b"two\nlines.png", b"red\x1b[31m.png", b"sch\xf6n.mp4"):
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(b"no picture")
    assert predict(folder, arguments=ALL) == 1
    output = capsys.readouterr()
    assert "4 files could not be read." in output.out and "Nothing was written." in output.out
    for name in (r"n\xe4h.png", r"two\nlines.png", r"red\x1b[31m.png", r"sch\xf6n.mp4"):
        assert name in output.err
    assert not (tmp_path / "out").exists()


def test_printable_keeps_what_can_be_read():
    assert printable("straße 1.png") == "straße 1.png" and printable("a\u202fb") == "a\u202fb"
    assert printable("a\r\nb\u2028c\x7f\udcff") == "a\\r\\nb\\u2028c\\x7f\\xff"


@pytest.mark.parametrize("letter", ["w", "ö", "語"])
def test_names_as_long_as_the_system_allows_are_shortened_and_told_apart(letter, predict, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    longest = letter * (251 // len(letter.encode()))
    saved(folder, longest.encode() + b".png")
    saved(folder, longest.encode()[: -len(letter.encode())] + b"z.png")
    saved_video(folder, longest.encode() + b".mp4", 2)
    assert predict(folder, arguments=ALL) == 0
    out = tmp_path / "out"
    assert len(os.listdir(out / "overlays")) == 3 and len(os.listdir(out / "masks")) == 4
    assert {len(list(masks.iterdir())) for masks in (out / "masks").iterdir()} == {OBJECTS}
    names = {Path(image["file_name"]).stem for image in load_coco(out)[0]["images"]}
    assert longest in names  # results have the whole name


def test_letters_with_accents_are_one_name_however_they_are_written(predict, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for form in ("NFC", "NFD"):
        saved(folder, unicodedata.normalize(form, "Ménage").encode() + b".png")
    assert len(os.listdir(folder)) == 2
    assert predict(folder, arguments=ALL) == 0
    written = os.listdir(tmp_path / "out" / "overlays")
    assert len({unicodedata.normalize("NFC", name).lower() for name in written}) == 2


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_frames_pages_and_pictures_never_share_a_name(order, predict, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_video(folder / "walk.mp4", 3)
    write_video(folder / "walk.avi", 2)
    Image.fromarray(picture()).save(folder / "walk_000001.png")
    pages = [Image.fromarray(picture(seed=k)) for k in range(2)]
    pages[0].save(folder / "walk.tif", save_all=True, append_images=pages[1:])
    inputs = [folder / n for n in ("walk.mp4", "walk.avi", "walk_000001.png", "walk.tif")]
    assert predict(*(inputs[k] for k in order), arguments=ALL) == 0
    out = tmp_path / "out"
    assert len(os.listdir(out / "masks")) == 3 + 2 + 1 + 2
    for masks in (out / "masks").iterdir():
        assert len(list(masks.iterdir())) == OBJECTS
    assert len(os.listdir(out / "overlays")) == 2 + 1 + 2
    images, _ = load_coco(out)
    by_size = {(i["height"], i["width"]) for i in images["images"]}
    assert by_size == {(64, 96), (60, 90)}


def test_numbered_names_leave_out_those_that_are_taken_and_keep_theirs():
    names = OutputNames()
    assert names.single("clip_000003") == "clip_000003"
    assert names.numbered("clip") == "clip_2"  # clip_000003 would be its fourth frame
    assert names.single("Clip_2_000010") == "Clip_2_000010_2"
    assert names.single("clip_12") == "clip_12"  # no frame is called so
    assert names.numbered("walk") == "walk" and names.numbered("Walk") == "Walk_2"
    assert names.single("WALK_0000001") == "WALK_0000001_2"
    assert with_number("walk", 1_234_567) == "walk_1234567"
    long = names.numbered("é" * 200)
    assert len(os.fsencode(long)) <= LONGEST and long.strip("é") == ""


def test_results_are_complete_while_the_run_goes_on(predict, tmp_path, monkeypatch):
    original, seen = prediction.predict_image, []

    def look(*arguments):
        if (tmp_path / "out").exists():
            images, results = load_coco(tmp_path / "out")
            seen.append((len(images["images"]), len(results), len(rows(tmp_path / "out"))))
        return original(*arguments)

    monkeypatch.setattr(prediction, "predict_image", look)
    for k in range(4):
        Image.fromarray(picture(seed=k)).save(tmp_path / f"{k}.png")
    images = [tmp_path / f"{k}.png" for k in range(4)]
    assert predict(*images, arguments=ALL) == 0
    assert seen == [(k, k * OBJECTS, k * OBJECTS) for k in (1, 2, 3)]


def test_results_outlive_the_end_of_the_process(model_files, tmp_path):
    """As when the system ends it for want of memory: nothing can be closed any more."""
    for k in range(4):
        Image.fromarray(picture(seed=k)).save(tmp_path / f"{k}.png")
    code = f"""
import os
from rdsnet.engine import prediction
original, calls = prediction.predict_image, []
def fall(*arguments):
    calls.append(1)
    if len(calls) == 3:
        os._exit(139)
    return original(*arguments)
prediction.predict_image = fall
prediction.predict({model_files["config"]!r}, {model_files["weights"]!r},
    [{str(tmp_path)!r} + f"/{{k}}.png" for k in range(4)], {str(tmp_path / "out")!r},
    formats=["coco", "csv"], score_threshold=0.0)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 139
    images, results = load_coco(tmp_path / "out")
    assert len(images["images"]) == 2 and len(results) == len(rows(tmp_path / "out")) == 2 * OBJECTS


@pytest.mark.parametrize("later", ["unreadable", "missing weights", "own output"])
def test_a_run_that_reads_nothing_leaves_earlier_results(later, predict, tmp_path, monkeypatch):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    assert predict(tmp_path / "a.png", arguments=ALL) == 0
    out = tmp_path / "out"
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "text.jpg").write_text("no image")
    if later == "unreadable":
        assert predict(tmp_path / "text.mp4", tmp_path / "text.jpg", arguments=ALL) == 1
    elif later == "missing weights":
        assert predict(tmp_path / "a.png", arguments=(*ALL, "--opts", "MODEL.NONE", "1")) == 2
    else:
        assert predict(out / "overlays", arguments=ALL) == 2
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_an_unreadable_video_takes_nothing_from_what_came_before(predict, tmp_path, capsys):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    (tmp_path / os.fsdecode(b"kaputt\xe9.mp4")).write_bytes(b"\0\0\0\x20ftypisom" + bytes(50))
    files = [tmp_path / "a.png", tmp_path / os.fsdecode(b"kaputt\xe9.mp4"), tmp_path / "a.png"]
    assert predict(*files, arguments=ALL) == 1
    assert len(rows(tmp_path / "out")) == OBJECTS
    assert r"kaputt\xe9.mp4 cannot be opened" in capsys.readouterr().err
