"""``rdsnet paper --data coco``: Detectron2's layout of folders, all models, tables and figures."""

import json
import os
import subprocess
import sys
from collections import Counter
from math import isnan
from pathlib import Path

import pytest

from rdsnet.evaluation.breakdown import read_breakdown

# A few photographs, and models so thin that a CPU trains and evaluates all of them in a minute.
TRAIN_IMAGES, VAL_IMAGES, ITERATIONS = 6, 4, 8
OPTIONS = {
    "MODEL.WEIGHTS": "",
    "INPUT.MIN_SIZE_TRAIN": "(160,)",
    "INPUT.MAX_SIZE_TRAIN": "256",
    "INPUT.MIN_SIZE_TEST": "160",
    "INPUT.MAX_SIZE_TEST": "256",
    "MODEL.YOLACT.INPUT_SIZE": "128",
    "MODEL.RESNETS.WIDTH_PER_GROUP": "8",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "16",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "32",
    "MODEL.FPN.OUT_CHANNELS": "64",
    "MODEL.RDSNET.PIXEL_STREAM.CONV_DIM": "32",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "64",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "32",
    "MODEL.RDSNET.MBRM.FIT.MAX_ITER": "5",
    # everything counts as found: models of eight iterations are sure of nothing
    "MODEL.RETINANET.SCORE_THRESH_TEST": "0.0",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.OPTIMIZER": "AdamW",
    "SOLVER.BASE_LR": "0.003",
    "DATALOADER.NUM_WORKERS": "0",
}


@pytest.fixture(scope="module")
def real_data():
    if "RDSNET_DATA" not in os.environ:
        pytest.skip("RDSNET_DATA is not set: no real images")
    return Path(os.environ["RDSNET_DATA"])


@pytest.fixture(scope="module")
def datasets(real_data, tmp_path_factory):
    """A folder for DETECTRON2_DATASETS with some images of tiny_coco."""
    source = real_data / "tiny_coco"
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "coco" / "annotations").mkdir(parents=True)
    content = json.loads((source / "annotations" / "instances_train2017.json").read_text())
    # Those with most people, some of them for both: after a few iterations everything is a person,
    # and some are found.
    people = Counter(a["image_id"] for a in content["annotations"] if a["category_id"] == 1)
    images = sorted(content["images"], key=lambda image: -people[image["id"]])
    for part, number in (("train2017", TRAIN_IMAGES), ("val2017", VAL_IMAGES)):
        (folder / "coco" / part).symlink_to(source / "train2017")
        ids = {image["id"] for image in images[:number]}
        annotations = [a for a in content["annotations"] if a["image_id"] in ids]
        path = folder / "coco" / "annotations" / f"instances_{part}.json"
        kept = {**content, "images": images[:number], "annotations": annotations}
        path.write_text(json.dumps(kept))
    return folder


def words_of(folder):
    words = ["--data", "coco", "--models", "R_50", "--iterations", ITERATIONS, "--output", folder]
    return [*words, *(word for pair in OPTIONS.items() for word in pair)]


def rdsnet(datasets, *words):
    """Exit status and what is printed, in a process: Detectron2 looks for COCO when imported."""
    command = [sys.executable, "-m", "rdsnet.cli", *map(str, words)]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets), "OMP_NUM_THREADS": "1"}
    environment |= {"RDSNET_TRACEBACK": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def made(datasets, tmp_path_factory):
    """The folder of a paper on COCO, complete."""
    folder = tmp_path_factory.mktemp("paper") / "coco"
    status, printed = rdsnet(datasets, "paper", *words_of(folder))
    assert status == 0, printed
    return folder


@pytest.mark.slow
def test_every_table_and_figure_is_made(made):
    text = (made / "paper.md").read_text()
    for number in (1, 2, 3, 4):
        assert f"## Table {number}:" in text
    for number in (1, 3, 4, 5):
        assert f"## Fig. {number}:" in text
    for number in (1, 2, 3):
        assert f"## Beyond the paper {number}:" in text
    for title in ("Mask R-CNN", "Cascade Mask R-CNN", "YOLACT", "RDSNet_s", "RDSNet"):
        assert f"| {title} " in text
    assert "Data: COCO 2017; models: R_50; 8 iterations of 2 images for every model" in text
    assert "Not finished" not in text
    assert {path.name for path in (made / "pictures").iterdir()} == {
        *("fig1.jpg", "fig3.jpg", "fig4.jpg", "fig5.png")
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rdsnet", "retinanet_600", "mask_rcnn", "yolact", "rdsnet_s"])
def test_a_separate_evaluation_of_a_checkpoint_gives_the_same_figures(made, datasets, name):
    folder = made / "runs" / f"{name}-1"
    *_, (expand, expected) = json.loads((folder / "result.json").read_text())["metrics"].items()
    options = [] if expand == "None" else ["MODEL.RDSNET.TEST_EXPAND", expand]
    status, printed = rdsnet(
        datasets, "eval", "--config-file", folder / "evaluation.yaml", *options
    )
    assert status == 0, printed
    evaluated = read_breakdown(folder / "evaluation" / "inference")["results"]
    assert evaluated.keys() == expected.keys() >= {"bbox", "segm"}
    for task, metrics in expected.items():
        for metric, value in metrics.items():
            again = evaluated[task][metric]
            assert again == pytest.approx(value, abs=1e-6) or (again is None and isnan(value))
    # AP is next to 0 here; what was found says more.
    found = [
        part / "inference" / "coco_instances_results.json"
        for part in (folder, folder / "evaluation")
    ]
    assert found[0].read_bytes() == found[1].read_bytes() and json.loads(found[0].read_text())


@pytest.mark.slow
def test_a_table_for_which_something_is_missing_is_made_later_without_training(made, datasets):
    """As when the first command had ``--only`` other tables."""
    path = made / "runs" / "rdsnet-1" / "result.json"
    result = json.loads(path.read_text())
    weights = (made / "runs" / "rdsnet-1" / "model_final.pth").stat().st_mtime_ns
    before = (made / "paper.md").read_text()
    table_4 = result.pop("table4")
    result["analysed"].remove("table4")
    path.write_text(json.dumps(result))
    status, printed = rdsnet(datasets, "paper", *words_of(made))
    assert status == 0 and "trained, without table4" in printed
    assert json.loads(path.read_text())["table4"] == table_4
    assert (made / "runs" / "rdsnet-1" / "model_final.pth").stat().st_mtime_ns == weights
    assert (made / "paper.md").read_text() == before


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("annotations", "there is no file"),
        ("val2017", "there are no images in"),
    ],
)
def test_what_is_missing_of_coco_is_named(tmp_path, broken, message):
    coco = tmp_path / "coco"
    for part in ("train2017", "val2017"):
        (coco / part).mkdir(parents=True)
        (coco / part / "1.jpg").touch()
    (coco / "annotations").mkdir()
    for part in ("train2017", "val2017"):
        (coco / "annotations" / f"instances_{part}.json").touch()
    for path in (coco / broken).iterdir():
        path.unlink()
    status, printed = rdsnet(tmp_path, "paper", *words_of(tmp_path / "paper"))
    assert status == 2 and f"--data coco: {message} {coco / broken}" in printed
    assert "DETECTRON2_DATASETS names the folder" in printed and f"it is '{tmp_path}'" in printed
    assert not (tmp_path / "paper").exists()


def test_coco_has_its_own_validation_images(tmp_path):
    status, printed = rdsnet(tmp_path, "paper", "--val", "mine.json", *words_of(tmp_path / "paper"))
    assert status == 2 and "--data coco is train2017 and val2017: give no images" in printed
