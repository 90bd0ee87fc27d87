"""benchmarks/peers: its data, runs, and tables from results made by hand."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from rdsnet.data.shapes import make_shapes_dataset

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "peers"
NAMES = ("data", "models", "report", "run")


@pytest.fixture
def modules(monkeypatch):
    """(data, models, report, run)"""
    monkeypatch.syspath_prepend(FOLDER)
    import data
    import models
    import report
    import run

    yield data, models, report, run
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def nuclei(tmp_path):
    """A folder whose nuclei/ has the layout of the real one."""
    folder = tmp_path / "data" / "nuclei"
    made = make_shapes_dataset(folder / "images", num_train=3, num_val=2, size=(64, 96))
    for split in ("train", "val"):
        content = json.loads(Path(made[f"{split}_json"]).read_text())
        for image in content["images"]:
            image["file_name"] = f"{split}/{image['file_name']}"
        content["images"][-1]["width"] = 5000  # too large: to be left out
        (folder / f"{split}.json").write_text(json.dumps(content))
    return tmp_path / "data"


def test_a_run_gives_a_result_and_is_not_repeated(modules, nuclei, tmp_path, capsys):
    *_, run = modules
    words = ["--iterations", "2", "--seeds", "3", "--budgets", "5", "--data", str(nuclei)]
    words += ["--sets", "nuclei", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    log = tmp_path / "runs" / "nuclei-lite-5-3" / "output.txt"
    assert run.main([*words, "--models", "lite"]) == 0, log.read_text()[-3000:]
    printed = capsys.readouterr().out
    assert "0 of 1 runs are finished" in printed and "| 5 | RDSNet-lite | 2 | - |" in printed
    result = json.loads((log.parent / "result.json").read_text())
    assert (result["model"], result["seed"], result["iterations"]) == ("lite", 3, 2)
    assert result["cpu_seconds_spent"] > 0
    assert set(result["AP"]) == {"bbox", "bbox_regressed", "segm"}
    content = json.loads((tmp_path / "runs" / "data" / "nuclei" / "train.json").read_text())
    assert len(content["images"]) == 2
    assert (tmp_path / "out" / "peers.png").is_file()

    assert run.main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out == "1 of 2 runs are finished\nnuclei-mask_rcnn-5-3\n"


def test_speeds_are_measured_in_turns_once(modules, nuclei, tmp_path, monkeypatch, capsys):
    *_, run = modules
    from rdsnet.training import timing

    asked = []

    def measure(configs):
        asked.append({name: cfg.MODEL.META_ARCHITECTURE for name, cfg in configs.items()})
        return {name: 0.5 * len(name) for name in configs}

    monkeypatch.setattr(timing, "seconds_per_iteration", measure)
    words = ["--speed", "--data", str(nuclei), "--sets", "nuclei", "--runs", str(tmp_path / "runs")]
    for models in (["lite"], ["lite"], ["focal"]):
        assert run.main([*words, "--models", *models]) == 0
    both = {"lite": "RDSNet", "mask_rcnn": "GeneralizedRCNN"}  # by the latter's time all are given
    assert asked == [both, both | {"focal": "RDSNet"}]  # known ones take turns with the new one
    printed = capsys.readouterr().out
    assert "nuclei, CPU seconds per iteration: {'lite': 2.0, 'mask_rcnn': 4.5}" in printed


def test_a_budget_becomes_iterations(modules, nuclei, tmp_path, monkeypatch):
    *_, run = modules
    from rdsnet.training.trainer import Trainer

    words = ["--data", str(nuclei), "--runs", str(tmp_path / "runs"), "--models", "lite"]
    args = run.parse([*words, "--sets", "nuclei"])
    run.speed_file("nuclei", args).parent.mkdir(parents=True)
    run.speed_file("nuclei", args).write_text('{"lite": 0.25, "mask_rcnn": 1.0}')
    trained = []
    monkeypatch.setattr(Trainer, "train", lambda self: trained.append(self.cfg.SOLVER))
    monkeypatch.setattr(Trainer, "test", lambda cfg, model: {})
    (tmp_path / "runs" / "nuclei-lite-50-1").mkdir()
    result = run.train(run.Run("nuclei", "lite", 50, 1), args)
    assert result["iterations"] == trained[0].MAX_ITER == 200
    assert (trained[0].WARMUP_ITERS, trained[0].LR_SCHEDULER_NAME) == (20, "WarmupCosineLR")


def test_with_ema_the_averaged_weights_are_evaluated(modules, nuclei, tmp_path, monkeypatch):
    *_, run = modules
    from rdsnet.training.hooks import WeightAverage
    from rdsnet.training.trainer import Trainer

    @torch.no_grad()
    def train(self):
        (average,) = (hook for hook in self._hooks if isinstance(hook, WeightAverage))
        bias = self.model.object_stream.head.cls_score.bias
        bias.fill_(1.0)
        average.after_step()
        bias.fill_(2.0)

    evaluated = []

    def evaluate(cfg, model):
        evaluated.append(model.object_stream.head.cls_score.bias[0].item())
        return {}

    monkeypatch.setattr(Trainer, "train", train)
    monkeypatch.setattr(Trainer, "test", evaluate)
    words = ["--data", str(nuclei), "--runs", str(tmp_path / "runs"), "--iterations", "9"]
    (tmp_path / "runs" / "nuclei-ema-5-1").mkdir(parents=True)
    run.train(run.Run("nuclei", "ema", 5, 1), run.parse(words))
    assert evaluated == [1.0]


def test_missing_data_is_named(modules, tmp_path):
    with pytest.raises(SystemExit, match="nuclei' does not exist: set RDSNET_DATA"):
        modules[-1].main(["--data", str(tmp_path)])


def test_polygons_of_via_become_coco(modules, tmp_path):
    data, *_ = modules
    for split in ("train", "val"):
        folder = tmp_path / "kudzu" / split
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(folder / "leaf.jpg")
        shape = {"name": "polygon", "all_points_x": [3, 13, 13, 3], "all_points_y": [5, 5, 9, 9]}
        regions = [{"shape_attributes": shape, "region_attributes": {"insect": "kudzu"}}]
        entry = {"filename": "leaf.jpg", "size": 1, "regions": regions, "file_attributes": {}}
        (folder / "via_region_data.json").write_text(json.dumps({"leaf.jpg1": entry}))
    parts = data.kudzu(tmp_path, tmp_path / "out")
    assert parts["val"][1] == tmp_path / "kudzu" / "val"
    content = json.loads(parts["train"][0].read_text())
    assert content["images"] == [{"id": 1, "file_name": "leaf.jpg", "width": 40, "height": 30}]
    (annotation,) = content["annotations"]
    assert annotation["bbox"] == [3, 5, 10, 4] and annotation["area"] == 40
    assert annotation["segmentation"] == [[3, 5, 13, 5, 13, 9, 3, 9]]


def test_a_category_without_objects_is_left_out(modules, tmp_path):
    data, *_ = modules
    for split in ("train", "valid"):
        folder = tmp_path / "waste" / split
        folder.mkdir(parents=True)
        content = {
            "images": [],
            "annotations": [{"category_id": 2}],
            "categories": [{"id": 0, "name": "root"}, {"id": 2, "name": "mask"}],
        }
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    parts = data.waste(tmp_path, tmp_path / "out")
    categories = json.loads(parts["val"][0].read_text())["categories"]
    assert [c["name"] for c in categories] == ["mask"]


def made_up(model, seed, box, mask, budget=100):
    return {
        "data": "nuclei",
        "model": model,
        "budget": budget,
        "seed": seed,
        "iterations": 50,
        "seconds_per_iteration": 2.5,
        "torch": "2",
        "date": "2026-11-26",
        "AP": {task: {"AP": ap} for task, ap in (("bbox", box), ("segm", mask))},
    }


def test_tables_pair_models_by_seed(modules, tmp_path):
    _, models, report, _ = modules
    results = [made_up("lite", 1, 40.0, 30.0), made_up("lite", 2, 44.0, 30.0)]
    results += [made_up("mask_rcnn", 1, 39.0, 31.0), made_up("mask_rcnn", 2, 41.0, 32.0)]
    text = report.write_peers(results, {"nuclei": {"lite": 12.5}}, tmp_path)
    # 42 +- (4 / sqrt 2) / sqrt 2
    assert "| 100 | RDSNet-lite | 50 | 125 | 1, 2 | - | 42.0 ± 2.0 | 30.0 ± 0.0 | 12.5 |" in text
    assert "at 100: box AP +2.0 ± 1.0; mask AP -1.5 ± 0.5." in text
    assert (tmp_path / "peers.png").is_file()

    on_gpu = [{**run, "device": "GPU X", "precision": "bfloat16"} for run in results]
    text = report.write_peers(on_gpu, {}, tmp_path, "peers_cuda")
    assert text.startswith("# RDSNet-lite against Mask R-CNN, same time\n")
    assert "one GPU X, in bfloat16." in text and "| iterations | s |" in text
    assert (tmp_path / "peers_cuda.png").is_file() and "](peers_cuda.png)" in text

    results += [made_up("focal", 1, 39.5, 29.0)]
    text = report.write_study("recipe", models.RECIPE, results, tmp_path)
    assert (tmp_path / "recipe.md").read_text() == text
    row = (
        "| focal loss instead of quality focal loss | 50 | 125 | - | 39.5 | -0.5, one seed | 29.0 "
    )
    assert row + "| -1.0, one seed |" in text


def test_every_model_has_its_config_and_known_keys(modules):
    from rdsnet import get_cfg

    _, models, *_ = modules
    known = get_cfg()
    for model in models.MODELS.values():
        assert (FOLDER.parents[1] / model.config).is_file()
        words = [str(word) for pair in model.options.items() for word in pair]
        known.merge_from_list(words)  # raises KeyError for others
