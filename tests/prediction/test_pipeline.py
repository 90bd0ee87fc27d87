"""Reading, the model and writing at the same time: as one after the other, whatever goes wrong."""

import os
import random
import signal
import threading
import time
import weakref
from pathlib import Path

import pytest
from helpers.predicting import OBJECTS, load_coco, picture
from PIL import Image

from rdsnet.checkpoint.trained import names_and_ids, prediction_config
from rdsnet.data.images import read_image
from rdsnet.prediction import Predictor, predict_image
from rdsnet.prediction.predictor import CountingPredictor
from rdsnet.prediction.sources import Frame
from rdsnet.prediction.writers import build_writers
from rdsnet.prediction.writers.coco import CocoWriter
from rdsnet.prediction.writers.csv_table import CsvWriter

COCO = ("--format", "coco", "--score-threshold", "0")


@pytest.fixture
def folder(tmp_path):
    """Make a folder of images of these (H, W), "00.png", "01.png", ..."""

    def make(sizes):
        (tmp_path / "images").mkdir()
        for k, size in enumerate(sizes):
            Image.fromarray(picture(*size, seed=k)).save(tmp_path / "images" / f"{k:02d}.png")
        return tmp_path / "images"

    return make


def fail(monkeypatch, owner, name, call, error):
    """Let a method raise an error at a call, from 1."""
    original, calls = getattr(owner, name), []

    def failing(*arguments):
        calls.append(None)
        if len(calls) == call:
            raise error
        return original(*arguments)

    monkeypatch.setattr(owner, name, failing)


def predicted(out):
    """Names of the images with results, in order; checks that all of them are complete."""
    images, results = load_coco(out)
    ids = [image["id"] for image in images["images"]]
    assert [result["image_id"] for result in results] == [i for i in ids for _ in range(OBJECTS)]
    return [Path(image["file_name"]).name for image in images["images"]]


# ------------------------------------------------------------------------ equal and in order


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_same_is_written_as_one_image_after_the_other(
    batch_size, predict, folder, model_files, tmp_path
):
    images = folder([(60, 90), (60, 90), (90, 60), (60, 90), (60, 90), (60, 90), (60, 90)])
    cfg = prediction_config(model_files["config"], model_files["weights"], 0.0)
    predictor = Predictor(cfg)
    writers = build_writers(["coco", "csv", "masks"], tmp_path / "alone", names_and_ids(cfg))
    for path in sorted(images.iterdir()):
        image = read_image(str(path), "BGR")
        for writer in writers:
            writer.write(Frame(path.stem, path, image), predict_image(predictor, image, 0.0))
    for writer in writers:
        writer.end()
    arguments = ["--format", "coco,csv,masks", "--score-threshold", "0"]
    assert predict(images, arguments=[*arguments, "--batch-size", str(batch_size)]) == 0

    (names, expected), (got_names, got) = load_coco(tmp_path / "alone"), load_coco(tmp_path / "out")
    assert got_names == names and len(got) == len(expected)
    for one, other in zip(got, expected):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
    files = [path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*.*")]
    assert sorted(files) == sorted(
        path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*")
    )
    if batch_size == 1:
        for file in files:
            assert (tmp_path / "out" / file).read_bytes() == (
                tmp_path / "alone" / file
            ).read_bytes()


def test_batches_are_of_neighbours_of_one_size(predict, folder, monkeypatch, tmp_path):
    """Once resized, to 96 x 144, 144 x 96 and 96 x 96 pixels."""
    a, b, c = (60, 90), (90, 60), (40, 40)
    images = folder([a, a, a, a, a, b, b, a, c, (120, 180), a])
    seen, find = [], CountingPredictor.find

    def watch(self, prepared):
        seen.append([tuple(inputs["image"].shape[1:]) for inputs in prepared])
        return find(self, prepared)

    monkeypatch.setattr(CountingPredictor, "find", watch)
    assert predict(images, arguments=[*COCO, "--batch-size", "3"]) == 0
    a, b, c = (96, 144), (144, 96), (96, 96)
    assert seen == [[a, a, a], [a, a], [b, b], [a], [c], [a, a]]
    assert predicted(tmp_path / "out") == [f"{k:02d}.png" for k in range(11)]
    seen.clear()
    assert predict(images, arguments=COCO) == 0
    assert [len(batch) for batch in seen] == [1] * 11  # on a CPU


def test_images_that_are_cut_off_are_counted_in_batches_too(predict, folder, capsys):
    images = folder([(96, 160)] * 5)
    assert predict(images, arguments=[*COCO, "--batch-size", "2"]) == 0
    assert f"5 images had more than {OBJECTS} objects" in capsys.readouterr().out


def test_order_and_names_do_not_depend_on_what_an_image_takes(
    predict, folder, monkeypatch, tmp_path
):
    images = folder([(60, 90)] * 12)
    (tmp_path / "more").mkdir()
    for name in ("03.png", "04.png", "07.png"):
        Image.fromarray(picture()).save(tmp_path / "more" / name)
    (tmp_path / "more" / "04.png").write_bytes(b"broken")  # it takes no name
    (tmp_path / "again").mkdir()
    Image.fromarray(picture()).save(tmp_path / "again" / "04.png")
    delays = random.Random(3)

    def slow(owner, name):
        original = getattr(owner, name)

        def delayed(*arguments):
            time.sleep(delays.random() / 50)
            return original(*arguments)

        monkeypatch.setattr(owner, name, delayed)

    slow(CountingPredictor, "prepare")
    slow(CountingPredictor, "find")
    slow(CocoWriter, "add")
    arguments = ["--format", "coco,masks", "--score-threshold", "0"]
    assert predict(images, tmp_path / "more", tmp_path / "again", arguments=arguments) == 1
    expected = [f"{k:02d}.png" for k in range(12)] + ["03.png", "07.png", "04.png"]
    assert predicted(tmp_path / "out") == expected
    names = {path.name for path in (tmp_path / "out" / "masks").iterdir()}
    assert names == {f"{k:02d}" for k in range(12)} | {"03_2", "07_2", "04_2"}


@pytest.mark.parametrize("slowest", ["find", "add"])
def test_images_in_memory_do_not_grow_with_their_number(predict, folder, monkeypatch, slowest):
    """Two read ahead, two that wait for being written; in hand the one that comes, the one that
    goes, and one that moves between two of these places.
    """
    images, alive, most = folder([(60, 90)] * 30), [], []
    prepare, find, add = CountingPredictor.prepare, CountingPredictor.find, CocoWriter.add

    def watch(self, image):
        alive.append(weakref.ref(image))
        return prepare(self, image)

    def count(name, original):
        def counting(*arguments):
            if name == slowest:
                time.sleep(0.02)  # so that all others are as far ahead or behind as they may be
            most.append(sum(reference() is not None for reference in alive))
            return original(*arguments)

        return counting

    monkeypatch.setattr(CountingPredictor, "prepare", watch)
    monkeypatch.setattr(CountingPredictor, "find", count("find", find))
    monkeypatch.setattr(CocoWriter, "add", count("add", add))
    assert predict(images, arguments=COCO) == 0
    assert len(alive) == 30 and max(most) <= 7


# ------------------------------------------------------------------------------- what fails


def test_an_error_in_the_model_leaves_what_was_done(predict, folder, monkeypatch, tmp_path):
    images = folder([(60, 90)] * 6)
    fail(monkeypatch, CountingPredictor, "find", 4, RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        predict(images, arguments=COCO)
    assert predicted(tmp_path / "out") == ["00.png", "01.png", "02.png"]


def test_an_error_in_a_reader_leaves_what_was_done(predict, folder, monkeypatch, tmp_path):
    """One that no file is to blame for."""
    images, prepare = folder([(60, 90)] * 4 + [(50, 90)] + [(60, 90)]), CountingPredictor.prepare

    def failing(self, image):
        if len(image) == 50:
            raise MemoryError
        return prepare(self, image)

    monkeypatch.setattr(CountingPredictor, "prepare", failing)
    with pytest.raises(MemoryError):
        predict(images, arguments=COCO)
    assert predicted(tmp_path / "out") == [f"{k:02d}.png" for k in range(4)]


def test_an_error_in_a_writer_ends_the_run_where_it_was(
    predict, folder, monkeypatch, tmp_path, capsys
):
    images = folder([(60, 90)] * 8)
    fail(monkeypatch, CsvWriter, "add", 3, OSError(28, "No space left on device"))
    assert predict(images, arguments=["--format", "coco,csv", "--score-threshold", "0"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert predicted(tmp_path / "out") == ["00.png", "01.png", "02.png"]
    rows = (tmp_path / "out" / "objects.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * OBJECTS


def test_an_image_that_cannot_be_resized_is_named_and_skipped(predict, folder, tmp_path, capsys):
    images = folder([(60, 90), (1, 900), (90, 60)])  # 96 to 160 pixels: 0 rows would be left
    assert predict(images, arguments=COCO) == 1
    output = capsys.readouterr()
    assert "01.png of 900 x 1 px cannot be resized" in output.err
    assert "1 file could not be read" in output.out
    assert predicted(tmp_path / "out") == ["00.png", "02.png"]


@pytest.fixture
def ctrl_c():
    """Ctrl-C means something, also in a process that a shell has started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    ("owner", "name"),
    [(CountingPredictor, "prepare"), (CountingPredictor, "find"), (CocoWriter, "add")],
)
def test_ctrl_c_leaves_complete_results(owner, name, predict, folder, monkeypatch, tmp_path):
    """Whichever part is at work when it comes."""
    images = folder([(60, 90)] * 20)
    original, calls = getattr(owner, name), []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(owner, name, interrupted)
    assert predict(images, arguments=["--format", "coco,masks", "--score-threshold", "0"]) == 130
    done = predicted(tmp_path / "out")
    assert 0 < len(done) < 20 and done == [f"{k:02d}.png" for k in range(len(done))]
    assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == [
        Path(file).stem for file in done
    ]


def test_no_thread_is_left_behind(predict, folder, monkeypatch):
    images, before = folder([(60, 90)] * 4), set(threading.enumerate())
    assert predict(images, arguments=COCO) == 0
    fail(monkeypatch, CountingPredictor, "find", 2, KeyboardInterrupt())
    assert predict(images, arguments=COCO) == 130
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()


# ---------------------------------------------------------------------------- the predictor


def test_the_predictor_does_what_detectron2s_does(model_files):
    from detectron2.engine import DefaultPredictor

    cfg = prediction_config(model_files["config"], model_files["weights"], 0.0)
    cfg.defrost()
    cfg.INPUT.FORMAT = "RGB"
    image = picture(70, 50)
    expected = DefaultPredictor(cfg)(image)["instances"]
    found = Predictor(cfg)(image)["instances"]
    assert found.image_size == (70, 50) and len(found) == OBJECTS
    # Folded norms and another layout in memory round otherwise.
    difference = found.pred_boxes.tensor - expected.pred_boxes.tensor
    assert difference.abs().max() < 1e-3
    assert (found.scores - expected.scores).abs().max() < 1e-5


def test_reading_does_not_change_the_image(model_files):
    predictor = Predictor(prediction_config(model_files["config"], model_files["weights"], 0.0))
    image = picture(96, 144)  # of the size that it would be resized to
    before = image.copy()
    inputs = predictor.prepare(image)
    inputs["image"].zero_()
    assert (image == before).all() and (inputs["height"], inputs["width"]) == (96, 144)
