"""train_net.py as people call it: train, resume, evaluate; and what it says to mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.utils.visualizer import Visualizer
from helpers.hanging import HANG

import rdsnet
from rdsnet.checkpoint import load_config
from rdsnet.data.shapes import make_shapes_dataset

ROOT = Path(__file__).resolve().parents[2]
SMALL = str(ROOT / "configs" / "small" / "rdsnet_small.yaml")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes_dataset(
        tmp_path_factory.mktemp("shapes"), num_train=6, num_val=2, size=(96, 128), seed=3
    )


def options(shapes, output, iterations=2):
    files = [
        ["a_train", shapes["train_json"], shapes["train_images"]],
        ["a_val", shapes["val_json"], shapes["val_images"]],
    ]
    return [
        *("DATASETS.COCO_FILES", str(files)),
        *("DATASETS.TRAIN", "('a_train',)", "DATASETS.TEST", "('a_val',)"),
        *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96"),
        *("SOLVER.MAX_ITER", str(iterations), "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2"),
        *("DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(output), "SEED", "1"),
    ]


def train_net(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "train_net.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=HANG,
    )


def test_train_resume_evaluate_and_predict(shapes, tmp_path):
    """One story: two iterations, two more by --resume, --eval-only, DefaultPredictor."""
    run = train_net("--config-file", SMALL, *options(shapes, tmp_path))
    assert run.returncode == 0, run.stderr[-3000:]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"

    run = train_net("--config-file", SMALL, "--resume", *options(shapes, tmp_path, iterations=4))
    assert run.returncode == 0, run.stderr[-3000:]
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 3
    assert "Starting training from iteration 2" in run.stdout + run.stderr
    report = (tmp_path / "report.html").read_text()
    assert "4 iterations of 2 images" in report and "could not be made" not in report
    assert "Representations" in report
    (tmp_path / "report.html").unlink()

    weights = str(tmp_path / "model_final.pth")
    resolved = str(tmp_path / "config.yaml")
    run = train_net("--config-file", resolved, "--eval-only", "MODEL.WEIGHTS", weights)
    assert run.returncode == 0, run.stderr[-3000:]
    printed = run.stdout + run.stderr
    for task in ("bbox", "bbox_regressed", "segm"):
        assert f"Task: {task}" in printed
    assert f"Report: {tmp_path / 'report.html'}" in printed
    assert (tmp_path / "report.html").is_file()

    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(resolved)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 5  # settled from the json when training began
    cfg.MODEL.WEIGHTS = weights
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.011
    predictor = DefaultPredictor(cfg)
    image = torch.randint(0, 255, (90, 140, 3), dtype=torch.uint8).numpy()
    instances = predictor(image)["instances"]
    assert instances.pred_masks.shape[1:] == (90, 140) and len(instances) > 0
    picture = Visualizer(image).draw_instance_predictions(instances[:5]).get_image()
    assert picture.shape == (90, 140, 3) and (picture != image).any()


@pytest.mark.parametrize(
    ("config_file", "extra", "error", "message"),
    [
        ("nowhere.yaml", [], FileNotFoundError, "config file 'nowhere.yaml' does not exist"),
        (SMALL, ["MODEL.RDSNET.NO_SUCH_KEY", "1"], ValueError, "NO_SUCH_KEY"),
        (SMALL, ["MODEL.RDSNET.TEST_EXPAND", "wide"], ValueError, "TEST_EXPAND|Type mismatch"),
        (SMALL, ["SOLVER.BASE_LR"], ValueError, "options come in pairs KEY VALUE, got"),
    ],
)
def test_mistakes_in_configs_are_named(shapes, tmp_path, config_file, extra, error, message):
    with pytest.raises(error, match=message):
        load_config(config_file, options(shapes, tmp_path) + extra)


def test_mistakes_on_the_command_line_end_in_one_message(shapes, tmp_path):
    weights = ["MODEL.WEIGHTS", str(tmp_path / "none.pth")]
    run = train_net("--config-file", SMALL, *options(shapes, tmp_path), *weights)
    assert run.returncode != 0
    assert "none.pth' does not exist. Give the path of a checkpoint" in run.stderr

    content = json.loads(Path(shapes["train_json"]).read_text())
    content["annotations"][0]["category_id"] = 77
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(content))
    run = train_net(
        "--config-file", SMALL, *options({**shapes, "train_json": str(broken)}, tmp_path)
    )
    assert run.returncode != 0
    assert "broken.json" in run.stderr and "77" in run.stderr
