"""benchmarks/transfer: its data, a quick run, and the table from results made by hand."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdsnet.checkpoint import read_checkpoint
from rdsnet.checkpoint.description import read_config, save_model

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "transfer"


@pytest.fixture
def modules(monkeypatch):
    """(run, report, data)"""
    names = ("run", "report", "data")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(FOLDER)
    import data
    import report
    import run

    yield run, report, data
    for name in names:
        sys.modules.pop(name)


@pytest.fixture
def root(tmp_path):
    """``kudzu`` in VIA's format: squares of 20 px, 3 training images of 64 x 96 px and 2 others."""
    for part, number in (("train", 3), ("val", 2)):
        folder = tmp_path / "data" / "kudzu" / part
        folder.mkdir(parents=True)
        content = {}
        for n in range(number):
            pixels = np.random.default_rng(n).integers(0, 255, (64, 96, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{n}.png")
            x, y = [10 + n, 30 + n, 30 + n, 10 + n], [20, 20, 40, 40]
            shape = {"name": "polygon", "all_points_x": x, "all_points_y": y}
            region = {"shape_attributes": shape, "region_attributes": {}}
            content[f"{n}.png1"] = {"filename": f"{n}.png", "regions": {"0": region}}
        (folder / "via_region_data.json").write_text(json.dumps(content))
    return tmp_path / "data"


def test_annotations_of_via_become_those_of_coco(modules, root):
    folder = root / "kudzu" / "train"
    content = modules[2].coco_content(folder / "via_region_data.json", folder, "bug")
    assert content["categories"] == [{"id": 1, "name": "bug"}]
    assert [(i["height"], i["width"]) for i in content["images"]] == [(64, 96)] * 3
    second = content["annotations"][1]
    assert second["bbox"] == [11, 20, 20, 20] and second["area"] == 400
    assert second["segmentation"] == [[11, 20, 31, 20, 31, 40, 11, 40]]
    assert second["image_id"] == content["images"][1]["id"]


def test_fewer_images_are_among_more(modules):
    images = [{"id": n} for n in range(30)]
    annotations = [{"id": n, "image_id": n} for n in range(1, 30)]
    content = {"images": images, "annotations": annotations, "categories": []}
    chosen = {
        (number, seed): {i["id"] for i in modules[2].few(content, number, seed)["images"]}
        for number in (5, 9, None)
        for seed in (1, 2)
    }
    assert chosen[5, 1] < chosen[9, 1] and len(chosen[9, 1]) == 9
    assert chosen[5, 1] != chosen[5, 2]
    assert chosen[None, 1] == chosen[None, 2] == set(range(1, 30))  # image 0 has no object


@pytest.mark.slow
def test_a_quick_run_gives_a_result_and_is_not_repeated(
    modules, root, trained_model, tmp_path, capsys
):
    run, _, _ = modules
    path = trained_model / "model_best.pth"
    cfg = read_config(path)
    cfg.MODEL.MASK_ON = True
    save_model(tmp_path / "start.pth", read_checkpoint(path)["model"], cfg)
    words = ["--quick", "--data", "kudzu", "--starts", "nuclei", "--root", str(root)]
    words += ["--weights", str(tmp_path / "start.pth"), "--runs", str(tmp_path / "runs")]
    words += ["--out", str(tmp_path / "out"), "--seeds", "4"]
    assert run.main(words) == 0, [p.read_text()[-2000:] for p in tmp_path.rglob("log.txt")]
    printed = capsys.readouterr().out
    assert "0 of 2 runs are finished" in printed and "FAILED" not in printed
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(r["data"], r["images"], r["seed"]) for r in document["runs"]] == [
        ("kudzu", 2, 4),
        ("kudzu", 3, 4),
    ]
    start = hashlib.sha256((tmp_path / "start.pth").read_bytes()).hexdigest()
    assert start.startswith(document["runs"][0]["weights"]) and document["runs"][0]["weights"]
    metrics = document["runs"][0]["metrics"]
    assert set(metrics) == {"bbox", "bbox_regressed", "segm"}
    assert all(ap >= 0 for values in metrics.values() for ap in values.values())  # never NaN
    assert (tmp_path / "out" / "transfer.png").is_file()
    assert run.main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("2 of 2 runs are finished")
    save_model(tmp_path / "start.pth", {}, cfg)  # another model: other runs
    assert run.main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("0 of 2 runs are finished")


def test_starts_differ_in_weights_alone(modules, root, tmp_path, monkeypatch):
    import rdsnet.training

    run, _, _ = modules
    runs = []
    monkeypatch.setattr(rdsnet.training, "run", runs.append)
    monkeypatch.setattr(run, "evaluated", lambda best: {})
    for start in ("imagenet", "scratch"):
        run.run_one(run.Run("kudzu", start, 2, 7), run.QUICK, tmp_path, root, "unused")
    assert runs[0].config_file == runs[1].config_file
    assert runs[1].opts == [*runs[0].opts, "MODEL.WEIGHTS", ""]


def test_data_that_is_not_there_is_named(modules, tmp_path):
    with pytest.raises(SystemExit, match="kudzu.*does not exist: set RDSNET_DATA"):
        modules[0].main(["--root", str(tmp_path)])


def test_a_model_that_is_not_there_is_named(modules, root, tmp_path):
    words = ["--root", str(root), "--data", "kudzu", "--weights", str(tmp_path / "none.pth")]
    with pytest.raises(SystemExit, match="the start 'nuclei' .*none.pth"):
        modules[0].main(words)


def made_up(start, seed, mask, images=10):
    """A result with this mask AP, and box AP that is 5 higher."""
    metrics = {"segm": {"AP": mask}, "bbox": {"AP": mask + 5.0}}
    settings = {"iterations": 300, "batch": 4}
    run = {"data": "waste", "start": start, "images": images, "seed": seed}
    return {**run, "metrics": metrics, "settings": settings}


def test_the_table_gives_means_errors_and_paired_gains(modules, tmp_path):
    results = [made_up("nuclei", 1, 20.0), made_up("nuclei", 2, 24.0), made_up("nuclei", 3, 22.0)]
    results += [made_up("imagenet", 1, 17.0), made_up("imagenet", 2, 22.0)]
    results += [made_up("imagenet", 1, 30.0, images=50)]
    modules[1].write_reports(results, tmp_path)
    text = (tmp_path / "transfer.md").read_text()
    # 20, 24, 22: deviation 2, over the root of 3. 17, 22: 3.54 over the root of 2. Gains 3 and 2.
    assert "| 10 | 22.0 ± 1.2 | 19.5 ± 2.5 | - | +2.5 ± 0.5 |" in text
    assert "| 50 | - | 30.0 | - | - |" in text
    assert "| 10 | 27.0 ± 1.2 | 24.5 ± 2.5 | - | +2.5 ± 0.5 |" in text
    assert "medical waste" in text and "insects" not in text and "3 seeds" in text
