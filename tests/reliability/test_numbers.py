"""Numbers that are not finite stop a training; half precision rounds, and does no more."""

import contextlib
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from detectron2.modeling import build_model
from helpers.rounding import random_signs, unit_roundoff
from reliability import tiny

from rdsnet.checkpoint import load_config
from rdsnet.training.trainer import Trainer

ITERATIONS = 3


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


class Moved(torch.autograd.Function):
    """A tensor times factors, and on the way back its gradient times others."""

    @staticmethod
    def forward(ctx, x, factors):
        ctx.factors = factors
        return x * factors(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factors(gradient), None


@contextlib.contextmanager
def roundings(model, factors):
    """Every input, weight and result of a convolution is moved, as rounding moves it."""
    convs = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    kept, hooks = [conv.weight.detach().clone() for conv in convs], []
    for conv in convs:
        conv.weight.data *= factors(conv.weight)
        hooks.append(conv.register_forward_pre_hook(lambda _, x: Moved.apply(*x, factors)))
        hooks.append(conv.register_forward_hook(lambda _, x, y: Moved.apply(y, factors)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for conv, weight in zip(convs, kept, strict=True):
            conv.weight.data.copy_(weight)


class Iteration(NamedTuple):
    predictions: dict[str, torch.Tensor]
    losses: torch.Tensor  # (3,)
    gradient: torch.Tensor  # of all parameters


def iteration(model, batch, dtype: torch.dtype | None = None) -> Iteration:
    """What a training computes in an iteration, with autocast to this type on the CPU."""
    normalizer = model.object_stream.loss_normalizer.clone()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        with torch.no_grad():
            features = model.backbone(model.preprocess_image(batch).tensor)
            found = model.object_stream(features)
            predictions = {
                "logits": torch.cat(found.logits, 1).float(),
                "deltas": torch.cat(found.deltas, 1).float(),
                "representations": torch.cat([x.flatten(1) for x in found.rep_features], 1).float(),
                "pixels": model.pixel_stream(features).float(),
            }
        torch.manual_seed(0)  # which positives learn masks
        losses = model(batch)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    model.zero_grad()
    sum(losses.values()).backward()
    model.object_stream.loss_normalizer.copy_(normalizer)  # a running mean
    gradient = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    losses = torch.stack([losses[name].detach() for name in sorted(losses)])
    return Iteration(predictions, losses, torch.cat(gradient))


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_as_near_to_float32_as_roundings_of_its_type(cfg, dtype):
    """In iterations that all begin at float32's weights, so that nothing adds up between them.

    The limits are how far float32 itself goes when the inputs, weights and results of all
    convolutions are moved by the type's unit roundoff: up or down at random, or all the same way
    (as where thousands of logits are alike). A distance between vectors of so many numbers hardly
    depends on the signs; a loss is one number, and a sum of random signs exceeds six standard
    deviations once in 10^7 times (Hoeffding's inequality).
    """
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    batches, generator = iter(Trainer.build_train_loader(cfg)), torch.Generator().manual_seed(0)
    u = unit_roundoff(dtype)
    halves, deviations, shifts = [], [], []
    for _ in range(ITERATIONS):
        batch = next(batches)
        exact, half = iteration(model, batch), iteration(model, batch, dtype)
        assert half.losses.isfinite().all() and half.gradient.isfinite().all()
        # A gradient that is off by less than its length leads downhill.
        assert (half.gradient - exact.gradient).norm() < exact.gradient.norm()
        halves.append(half.losses - exact.losses)
        for _ in range(2):
            with roundings(model, lambda x: 1 + u * random_signs(x, generator)):
                moved = iteration(model, batch)
            deviations.append(moved.losses - exact.losses)
            for name, expected in exact.predictions.items():
                limit = (moved.predictions[name] - expected).norm()
                assert (half.predictions[name] - expected).norm() <= limit, name
        for way in (1, -1):
            with roundings(model, lambda x, way=way: torch.tensor(1 + u * way)):
                shifts.append(iteration(model, batch).losses - exact.losses)
        iteration(model, batch)
        optimizer.step()
    limit = torch.stack(shifts).abs().amax(0) + 6 * torch.stack(deviations).square().mean(0).sqrt()
    assert (torch.stack(halves).abs() <= limit).all(), (halves, limit)


def test_amp_trains_on_the_cpu_and_resumes(data, tmp_path):
    keys = ("SOLVER.AMP.ENABLED", "True")
    cfg = load_config(tiny.SMALL, tiny.options(data, tmp_path, 2, *keys))
    Trainer(cfg).train()
    resumed = Trainer(load_config(tiny.SMALL, tiny.options(data, tmp_path, 3, *keys)))
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert torch.load(Path(tmp_path) / "model_final.pth", weights_only=True)["iteration"] == 2
