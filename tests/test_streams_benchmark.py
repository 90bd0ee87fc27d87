"""benchmarks/streams: its runs, and tables from results made by hand."""

import json
import sys
from pathlib import Path

import pytest

from rdsnet.data.shapes import make_shapes_dataset

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "streams"


@pytest.fixture
def modules(monkeypatch):
    """(run, report, trainings)"""
    monkeypatch.syspath_prepend(FOLDER)
    import report
    import run
    import trainings

    yield run, report, trainings
    for name in ("run", "report", "trainings"):
        sys.modules.pop(name)


@pytest.fixture
def data(tmp_path):
    """A data set of the layout of nuclei/: train.json, val.json, images/."""
    made = make_shapes_dataset(tmp_path / "data" / "images", num_train=3, num_val=2, size=(64, 96))
    for split in ("train", "val"):
        content = json.loads(Path(made[f"{split}_json"]).read_text())
        for image in content["images"]:
            image["file_name"] = f"{split}/{image['file_name']}"
        content["images"][-1]["width"] = 5000  # too large: to be left out
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(content))
    return tmp_path / "data"


def test_a_quick_run_gives_a_result_and_is_not_repeated(modules, data, tmp_path, capsys):
    run, _, _ = modules
    words = ["--quick", "--only", "fcos", "--seeds", "4", "--data", str(data)]
    words += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert run.main(words) == 0, (tmp_path / "runs" / "fcos-4" / "log.txt").read_text()
    printed = capsys.readouterr().out
    assert "0 of 1 runs are finished" in printed and "FAILED" not in printed
    result = json.loads((tmp_path / "runs" / "fcos-4" / "result.json").read_text())
    assert result["parameters"] > 4e6 and result["training_cpu_seconds"] > 0
    assert set(result["evaluations"]["1.2"]) == {"bbox", "bbox_regressed", "segm"}
    for split, count in (("train", 2), ("val", 1)):
        content = json.loads((tmp_path / "runs" / "fcos-4" / f"{split}.json").read_text())
        assert len(content["images"]) == count
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [r["seed"] for r in document["runs"]] == [4]
    assert document["milliseconds_per_image"]["fcos"] > 0
    assert "| RDSNet on FCOS |" in (tmp_path / "out" / "comparison.md").read_text()
    assert (tmp_path / "out" / "streams.png").is_file()

    assert run.main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out == "1 of 1 runs are finished\n"


def test_data_that_is_not_there_is_named(modules, tmp_path):
    with pytest.raises(SystemExit, match="train.json' does not exist: set RDSNET_DATA"):
        modules[0].main(["--data", str(tmp_path)])


@pytest.mark.skipif(
    not (FOLDER.parents[1] / "projects" / "YOLACT").is_dir(), reason="projects/YOLACT is not here"
)
def test_every_training_has_its_config_file(modules):
    _, _, trainings = modules
    root = FOLDER.parents[1]
    missing = {t.config for t in trainings.TRAININGS.values() if not (root / t.config).is_file()}
    assert not missing


def made_up(name, seed, mask_aps, box=40.0):
    """A result with mask AP per expansion."""
    settings = {"max_side": 320, "max_iter": 500, "batch": 8, "crop": 128}
    evaluations = {
        expand: {"segm": {"AP": ap}, "bbox": {"AP": box + 2}, "bbox_regressed": {"AP": box}}
        for expand, ap in mask_aps.items()
    }
    return {
        "name": name,
        "seed": seed,
        "settings": settings,
        "parameters": 5_000_000,
        "training_cpu_seconds": 100.0 + seed,
        "torch": "2",
        "date": "2026-11-24",
        "evaluations": evaluations,
    }


def test_tables_give_means_spreads_and_gains_paired_by_seed(modules, tmp_path):
    _, report, _ = modules
    results = [made_up("yolact", 1, {"1.0": 20.0}), made_up("yolact", 2, {"1.0": 24.0})]
    results += [made_up("corr", s, {"1.0": ap, "1.2": 9.0}) for s, ap in ((1, 21.0), (2, 25.2))]
    results += [made_up("rdsnet_s", s, {"1.0": 1, "1.2": ap}) for s, ap in ((1, 19.0), (2, 28))]
    report.write_reports(results, {"yolact": 12.5}, tmp_path)
    ablation = (tmp_path / "ablation.md").read_text()
    # 22 +- sqrt((2^2 + 2^2) / 1); gains 1.0 and 1.2: mean 1.1, standard error 0.1
    assert "| 1 | LC |  |  |  | 22.0 ± 2.8 | 20.0, 24.0 | +0.0 | 29.9 | +0.0 |" in ablation
    assert "| 2 | Corr |  |  |  | 23.1 ± 3.0 | 21.0, 25.2 | +1.1 | 31.0 | +1.1 |" in ablation
    assert "| 4 | Corr | x |  |  | - | - | - | 30.7 | +0.8 |" in ablation
    assert "+1.1 mask AP (seeds: +1.0, +1.2; standard error 0.1; the paper: +1.1): " in ablation
    assert "the paper's direction shows at this scale." in ablation
    # rows 2 to 7: -2.0 and +2.8
    assert "(seeds: -2.0, +2.8; standard error 2.4; the paper: +0.8): within the noise" in ablation
    comparison = (tmp_path / "comparison.md").read_text()
    row = "| YOLACT | 40.0 ± 0.0 | 42.0 ± 0.0 | 22.0 ± 2.8 | 12.5 | 5.00 M | 102 |"
    assert row in comparison
