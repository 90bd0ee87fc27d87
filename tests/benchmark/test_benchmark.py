"""rdsnet benchmark: the implementations agree, and the report says what was run. No times."""

import dataclasses
import json
import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.nn import functional as F

from rdsnet.benchmark import in_use, mask_path, measure, report
from rdsnet.benchmark.scene import make_scene
from rdsnet.cli import main
from rdsnet.ops import compiled

IMPLEMENTATIONS = {"straightforward", "pytorch"} | (
    {"compiled"} if compiled.active_path() != "pytorch" else set()
)


@pytest.fixture(scope="module")
def scene():
    return make_scene(12, 320)


@pytest.fixture(scope="module")
def exact(scene):
    """The scene in float64, where no decision depends on the order in which a processor adds."""
    return dataclasses.replace(scene, psi=scene.psi.double(), phi=scene.phi.double())


@pytest.mark.numeric
def test_all_implementations_give_the_same_losses_and_gradients(exact):
    agreement = mask_path.agreement(exact)
    assert set(agreement) == IMPLEMENTATIONS - {"straightforward"}
    for name, own in agreement.items():
        assert own["loss"] < 1e-7 and own["gradient"] < 1e-7, name  # of float64


@pytest.mark.numeric
def test_all_implementations_give_the_same_loss_at_the_pixels():
    scene = make_scene(5, 160)
    scene = dataclasses.replace(scene, psi=scene.psi.double(), phi=scene.phi.double())
    calls = mask_path.training_calls(scene, "training at pixels")
    assert set(calls) == IMPLEMENTATIONS
    expected = calls.pop("straightforward")()
    for call in calls.values():
        for mine, theirs in zip(call(), expected, strict=True):
            assert (mine - theirs).abs().max() <= 1e-7 * theirs.abs().max()  # of float64


@pytest.mark.numeric
def test_all_implementations_give_the_same_masks_and_boxes(exact):
    """The straightforward code interpolates twice, which moves outlines by part of a pixel."""
    results = {name: call() for name, call in mask_path.inference_calls(exact).items()}
    rles, boxes = results.pop("straightforward")
    expected = dense(rles)
    for rle, own in results.values():
        mine = dense(rle)
        assert (mine <= grown(expected)).all() and (expected <= grown(mine)).all()
        assert (own - boxes).abs().max() <= 1
        assert rle == results["pytorch"][0] and torch.equal(own, results["pytorch"][1])
    assert mine.flatten(1).any(1).all()


def dense(rles) -> torch.Tensor:
    """(N, H, W) bool."""
    return torch.from_numpy(coco_mask.decode(rles)).permute(2, 0, 1).bool()


def grown(masks: torch.Tensor) -> torch.Tensor:
    """By a pixel to every side."""
    return F.max_pool2d(masks[:, None].float(), 3, stride=1, padding=1)[:, 0].bool()


def test_objects_of_the_scene_are_learnt_by_their_representations(scene):
    masks = mask_path.inference_calls(scene)["pytorch"]()[0]
    areas = scene.gt_masks.flatten(1).sum(1).tolist()
    assert len(masks) == 12 and min(areas) > 0
    assert make_scene(3, 100).phi.equal(make_scene(3, 100).phi)
    assert mask_path.training_calls(scene)["pytorch"]()[0] < math.log(
        2
    )  # which guessing would cost


def test_calls_take_turns_and_the_first_round_does_not_count():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = measure.alternate(calls, "cpu", 0.0, (2, 5))
    assert "".join(order) == "abc" * 3
    assert all(own["rounds"] == 2 and own["min_ms"] <= own["median_ms"] for own in times.values())


def test_peak_memory_counts_what_is_freed_again():
    def call(megabytes):
        return torch.ones(megabytes * 250_000).sum()

    peaks = [measure.extra_peak_mb(lambda n=n: call(n), "cpu") for n in (0, 40, 80)]
    if None in peaks:
        pytest.skip("the system does not tell the peak of resident memory")
    # The kernel counts pages in batches; it is not off by as much as half of a tensor.
    assert peaks[0] + 20 < peaks[1] < peaks[2] - 20


def test_bound_counts_products_and_traffic_once(scene):
    arithmetic = mask_path.bound_ms(scene, "training", {"fma_per_s": 1e9, "bytes_per_s": 1e30})
    calls = []
    windows = mask_path.expanded_windows(scene.gt_boxes / 4, 1.5, (80, 134))
    for x1, y1, x2, y2 in windows.tolist():
        calls.append((x2 - x1) * (y2 - y1) * 32 * 3)
    assert arithmetic == pytest.approx(sum(calls) / 1e6)
    traffic = mask_path.bound_ms(scene, "inference", {"fma_per_s": 1e30, "bytes_per_s": 1e9})
    assert traffic == pytest.approx(32 * 80 * 136 * 4 / 1e6)


def test_mask_path_report(tmp_path, capsys):
    arguments = ["--quick", "--threads", "1", "--sizes", "64", "--objects", "1", "3"]
    assert main(["benchmark", "--mask-path", "--output", str(tmp_path), *arguments]) == 0
    report = json.loads((tmp_path / "mask_path.json").read_text())
    assert {"date", "cpu", "torch", "operators"} <= set(report["machine"])
    assert report["limits"][0]["fma_per_s"] > 0 and report["limits"][0]["bytes_per_s"] > 0
    assert len(report["results"]) == 6
    for result in report["results"]:
        assert result["size"] == 64 and result["bound_ms"] > 0
        assert set(result["implementations"]) == IMPLEMENTATIONS
        for own in result["implementations"].values():
            assert own["min_ms"] > 0 and own["speedup"] > 0 and own["times_bound"] > 0
    assert {r["phase"] for r in report["lazy_convolution"]} == {"inference", "training"}
    text = (tmp_path / "mask_path.md").read_text()
    assert text in capsys.readouterr().out + "\n"
    assert "| straightforward" in text and "Inference, 1 thread" in text
    assert (tmp_path / "mask_path.png").stat().st_size > 10_000


def test_straightforward_is_left_out_with_the_reason_where_it_needs_too_much_memory(scene):
    plan = mask_path.Plan(seconds=0, rounds=(1, 1), memory_limit_gb=0.001)
    limit = {"threads": 1, "fma_per_s": 1e9, "bytes_per_s": 1e9}
    result = mask_path.compare(scene, "inference", plan, limit, "cpu")
    assert set(result["implementations"]) == IMPLEMENTATIONS - {"straightforward"}
    assert "more than the limit of 0.001 GB" in result["skipped"]["straightforward"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--mask-path, --models or both, or --goals"),
        (["--mask-path", "--objects", "0"], "--objects must be positive"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, tmp_path, capsys):
    assert main(["benchmark", "--output", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_goals_report(tmp_path):
    pytest.importorskip("timm")
    assert main(["benchmark", "--goals", "--quick", "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "goals.json").read_text())
    for times in report["times"].values():
        assert all(own["median_ms"] >= own["min_ms"] > 0 for own in times.values())
    assert len(report["goals"]) == 6
    text = (tmp_path / "goals.md").read_text()
    assert all(goal["measured"] in text for goal in report["goals"])


@pytest.mark.slow
def test_models_report_with_options_is_about_the_resnet(tmp_path):
    arguments = ["--threads", "1", "--quick", "MODEL.RETINANET.NORM", ""]
    assert main(["benchmark", "--models", "--output", str(tmp_path), *arguments]) == 0
    report = json.loads((tmp_path / "models.json").read_text())
    assert report["settings"]["dtype"] == "float32"
    assert report["settings"]["options"] == ["MODEL.RETINANET.NORM", ""]
    assert [(r["backbone"], r["phase"]) for r in report["results"]] == PHASES[:2]
    check_models(report["results"])
    assert list(report["as_shipped"]) == ["RDSNet R-50, 128 px"] and "in_use" not in report


@pytest.mark.slow
def test_models_report(tmp_path):
    pytest.importorskip("timm")
    pytest.importorskip("onnxruntime")
    arguments = ["--threads", "1", "--quick"]
    assert main(["benchmark", "--models", "--output", str(tmp_path), *arguments]) == 0
    report = json.loads((tmp_path / "models.json").read_text())
    assert [(r["backbone"], r["phase"]) for r in report["results"]] == PHASES
    check_models(report["results"])
    for name in ("RDSNet R-50, 128 px", "RDSNet lite, 128 px"):
        of_model = report["as_shipped"][name]
        assert list(of_model) == ["plain", "as shipped, float32", "as shipped, bf16"]
        assert all(own["median_ms"] > 0 for own in of_model.values())

    used = report["in_use"]
    assert list(used["files"]) == ["PyTorch, float32", "PyTorch, bfloat16", "onnxruntime, float32"]
    objects = [own["objects"] for own in used["files"].values()]
    assert min(objects) > 0  # tests/export compares what files and models find
    assert all(own["min_ms"] > 0 for own in used["files"].values())
    assert used["files"]["onnxruntime, float32"]["files_mb"] > 10
    assert used["left_out"] == {} and used["predict"]["threads"] == 1
    text = (tmp_path / "models.md").read_text()
    assert "over RetinaNet" in text and "times plain" in text and "2 such JPEGs" in text
    assert (tmp_path / "models.png").stat().st_size > 10_000


PHASES = [(b, p) for b in ("R-50", "lite") for p in ("inference", "training")]


def check_models(results):
    for result in results:
        assert set(result["models"]) == {"RetinaNet", "RDSNet", "Mask R-CNN"}
        assert all(own["median_ms"] > 0 for own in result["models"].values())
        if result["phase"] == "inference":
            # Shared branches and threshold: the same boxes go into NMS.
            found = {name: own["detections"] for name, own in result["models"].items()}
            assert found["RetinaNet"] == found["RDSNet"] > 50 and found["Mask R-CNN"] > 50


def test_files_that_cannot_be_written_are_left_out_with_the_reason(tmp_path, monkeypatch):
    """And what the others were written from; the model itself is not run."""
    monkeypatch.setattr(in_use, "find_spec", lambda name: None if name == "openvino" else object())
    monkeypatch.setitem(
        in_use.FILES, "OpenVINO, convolutions in 8 bits", ("int8.xml", ("nncf",), "export,int8")
    )
    seen = {}

    def export(config, weights, output, *, score_threshold):
        raise ValueError(f"{output.name} differs from {weights}")

    def export_int8(images, config, weights, output, *, score_threshold):
        seen["calibration"] = [np.asarray(Image.open(image)) for image in images]
        output.write_bytes(bytes(1_500_000))
        output.with_suffix(".bin").write_bytes(bytes(2_000_000))

    def call_of(file, precision, image):
        seen.setdefault("measured", image)
        return lambda: range(7)

    monkeypatch.setattr(in_use, "export", export)
    monkeypatch.setattr(in_use, "export_int8", export_int8)
    monkeypatch.setattr(in_use, "call_of", call_of)
    monkeypatch.setattr(in_use, "peak_mb", lambda *arguments: None)
    monkeypatch.setattr(in_use, "compare_predict", lambda *arguments: PREDICTED)
    used = in_use.run(tmp_path, (64, 96), 3, 1, 2)
    assert used["left_out"] == {
        "onnxruntime, float32": "model.onnx differs from nuclei",
        "OpenVINO, float32": "openvino not installed: pip install 'rdsnet[export,openvino]'",
    }
    ways = ["PyTorch, float32", "PyTorch, bfloat16", "OpenVINO, convolutions in 8 bits"]
    assert list(used["files"]) == ways
    assert used["files"][ways[2]]["files_mb"] == 3.5 and used["files"][ways[0]]["objects"] == 7
    assert len(seen["calibration"]) == 3
    # a picture that comes after those of the folder
    assert np.array_equal(seen["measured"], in_use.picture(3, (64, 96)))
    lines = report._in_use(used)
    assert "Left out: onnxruntime, float32: model.onnx differs from nuclei" in lines
    assert "| ? " in lines[1] and "too few to tell" in lines[-1] and "2 threads" in lines[-1]


PREDICTED = {
    "images": 3,
    "precision": "bf16",
    "model_images_per_second": 4.0,
    "predict_images_per_second": None,
    "loading_seconds": 1.0,
}


@pytest.mark.parametrize("all_ms, speed", [(8000, 2.0), (2000, None), (1900, None)])
def test_loading_and_the_first_picture_are_not_counted(all_ms, speed, tmp_path, monkeypatch):
    """Twelve further pictures in six seconds; or no more seconds than for one."""
    pictures = in_use.write_pictures(tmp_path / "pictures", (32, 48), 13)
    times = {"model": {"median_ms": 5200}, "one": {"median_ms": 2000}, "all": {"median_ms": all_ms}}
    monkeypatch.setattr(in_use, "build_predictor", lambda cfg: Mock())
    monkeypatch.setattr(measure, "alternate", lambda *arguments: times)
    found = in_use.compare_predict(tmp_path, pictures, 3)
    assert found["predict_images_per_second"] == speed
    assert found["model_images_per_second"] == 2.5 and found["loading_seconds"] == 2
    assert len(list((tmp_path / "one").iterdir())) == 1


def test_pictures_of_nuclei_are_made_up_from_a_seed():
    first, again, other = (in_use.picture(seed, (96, 128)) for seed in (1, 1, 2))
    assert first.shape == (96, 128, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    # bright objects on a dark ground
    assert np.median(first) < 40 and first.max() > 70
