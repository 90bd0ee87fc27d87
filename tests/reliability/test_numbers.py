"""Numbers that are not finite stop a training; half precision gives the same curve."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from reliability import tiny

from rdsnet.checkpoint import load_config
from rdsnet.training.trainer import Trainer

ITERATIONS = 6


@pytest.fixture
def cfg(data, tmp_path):
    return load_config(tiny.SMALL, tiny.options(data, tmp_path, 12))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(cfg, tmp_path, value):
    trainer = Trainer(cfg)
    forward, calls = trainer.model.losses, []

    def losses(*args):
        calls.append(args)
        found = forward(*args)
        return {**found, "loss_mask": found["loss_mask"] * value} if len(calls) == 3 else found

    trainer.model.losses = losses
    batches = iter(trainer.build_train_loader(cfg))
    expected = [next(batches) for _ in range(3)][-1]
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert len(calls) == 3
    message = str(error.value)
    assert "not finite in iteration 2" in message and f"loss_mask {value:g}" in message
    for image in expected:
        assert image["file_name"] in message
    assert not list(tmp_path.glob("model_*.pth"))

    content = torch.load(tmp_path / "non_finite_0000002.pth", weights_only=True)
    assert content["iteration"] == 2 and not torch.tensor(content["losses"]["loss_mask"]).isfinite()
    for written, image in zip(content["batch"], expected, strict=True):
        assert written["file_name"] == image["file_name"]
        assert torch.equal(written["image"], image["image"])
        assert torch.equal(written["gt_boxes"], image["instances"].gt_boxes.tensor)
        assert written["gt_masks"].shape == (len(image["instances"]), *image["image"].shape[1:])
    # The weights are those of the bad iteration: they can be put into a fresh model.
    build_model(cfg).load_state_dict(content["model"])


def test_evaluation_and_finite_losses_are_left_alone(cfg, tmp_path):
    trainer = Trainer(cfg)
    trainer.max_iter = 2
    trainer.train()
    assert not list(tmp_path.glob("non_finite*")) and (tmp_path / "model_final.pth").is_file()
    assert not trainer.model._forward_hooks


@pytest.mark.parametrize("name", ["rdsnet_R_50_FPN_1x", "rdsnet_R_101_FPN_600_1x"])
def test_gradients_are_clipped_at_35_as_in_the_authors_recipe(name):
    path = tiny.ROOT / "configs" / "COCO-InstanceSegmentation" / f"{name}.yaml"
    clip = load_config(str(path)).SOLVER.CLIP_GRADIENTS
    assert clip.ENABLED and clip.CLIP_TYPE == "full_model"
    assert clip.CLIP_VALUE == 35.0 and clip.NORM_TYPE == 2.0


def loss_curve(cfg, dtype: torch.dtype | None, iterations: int) -> torch.Tensor:
    """(iterations, 3) losses of a training with autocast to this type on the CPU."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    batches, curve = iter(Trainer.build_train_loader(cfg)), []
    for _ in range(iterations):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            losses = model(next(batches))
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        curve.append([losses[name].item() for name in sorted(losses)])
    return torch.tensor(curve)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_curve_of_float32_within_noise(cfg, dtype):
    exact, half = loss_curve(cfg, None, ITERATIONS), loss_curve(cfg, dtype, ITERATIONS)
    assert half.isfinite().all()
    # Measured: docs/reliability.md. The losses themselves change by far more in these iterations.
    assert (half.sum(1) / exact.sum(1) - 1).abs().max() < 0.03


def test_amp_trains_on_the_cpu_and_resumes(data, tmp_path):
    keys = ("SOLVER.AMP.ENABLED", "True")
    cfg = load_config(tiny.SMALL, tiny.options(data, tmp_path, 2, *keys))
    Trainer(cfg).train()
    resumed = Trainer(load_config(tiny.SMALL, tiny.options(data, tmp_path, 3, *keys)))
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert torch.load(Path(tmp_path) / "model_final.pth", weights_only=True)["iteration"] == 2
