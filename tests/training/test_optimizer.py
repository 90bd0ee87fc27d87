"""The optimizer that a config asks for: its kind, its learning rates, its clipping."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from helpers.rounding import gamma
from torch import nn

from rdsnet import get_cfg
from rdsnet.checkpoint import load_config
from rdsnet.training.hooks import LRScheduler
from rdsnet.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]


def config(*options):
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", "model.pth"
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.01, "SOLVER.OPTIMIZER", "AdamW", *options])
    return cfg


class Model(nn.Module):
    """A backbone below its pyramid, and a head, each with a weight, a bias and a norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Module()
        self.backbone.bottom_up = nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4))
        self.backbone.lateral = nn.Linear(4, 4)
        self.head = nn.Sequential(nn.Linear(4, 2), nn.GroupNorm(1, 2))

    def forward(self, x):
        return self.head(self.backbone.lateral(self.backbone.bottom_up(x)))


def steps(model, optimizer, count=5):
    g = torch.Generator().manual_seed(1)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(8, 3, generator=g)).square().sum().backward()
        optimizer.step()


def test_full_model_clipping_bounds_the_total_norm():
    cfg = load_config(str(ROOT / "configs" / "Base-RDSNet.yaml"))
    cfg.defrost()
    assert cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.5
    layer = nn.Linear(3, 4)
    optimizer = Trainer.build_optimizer(cfg, layer)
    layer.weight.grad, layer.bias.grad = torch.full((4, 3), 3.0), torch.full((4,), -3.0)
    optimizer.step()
    total = math.sqrt(float(layer.weight.grad.square().sum() + layer.bias.grad.square().sum()))
    # PyTorch divides by the norm, here 12, plus 1e-6; 16 float32 numbers are scaled and added.
    assert total == pytest.approx(0.5, rel=1e-6 / 12 + gamma(20))
    assert layer.weight.grad[0, 0] == -layer.bias.grad[0] > 0  # the direction stays


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_the_optimizer_is_the_one_named(name):
    optimizer = Trainer.build_optimizer(config("SOLVER.OPTIMIZER", name), nn.Linear(2, 2))
    assert isinstance(optimizer, getattr(torch.optim, name))


def test_an_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER must be SGD or AdamW, got 'Adamm'"):
        Trainer.build_optimizer(config("SOLVER.OPTIMIZER", "Adamm"), nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("clip", ["none", "norm", "full_model"])
def test_the_backbone_learns_at_its_own_rate(name, clip):
    """Every parameter steps as in a model of which all learn at that rate."""
    options = ["SOLVER.OPTIMIZER", name, "SOLVER.WEIGHT_DECAY", 0.1]
    if clip != "none":
        key = "SOLVER.CLIP_GRADIENTS"
        options += [f"{key}.ENABLED", True, f"{key}.CLIP_TYPE", clip, f"{key}.CLIP_VALUE", 0.1]
    models = {}
    for rates in ("both", "fast", "slow"):
        models[rates] = Model()
        own = {"both": ["SOLVER.BACKBONE_LR_FACTOR", 0.25], "slow": ["SOLVER.BASE_LR", 0.0025]}
        cfg = config(*options, *own.get(rates, []))
        optimizer = Trainer.build_optimizer(cfg, models[rates])
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        assert len(trained) == len(set(trained)) == len(list(models[rates].parameters()))
        assert all(group["params"] for group in optimizer.param_groups)
        steps(models[rates], optimizer, 1)
    for parameter, (key, value) in zip(models["both"].parameters(), Model().named_parameters()):
        slow = key.startswith("backbone.bottom_up.")
        same = dict(models["slow" if slow else "fast"].named_parameters())[key]
        # A total norm is summed in the order of the groups.
        torch.testing.assert_close(parameter, same, rtol=1e-5, atol=1e-7, msg=key)
        assert not torch.equal(parameter, value), key


def test_of_lite_the_pretrained_network_has_a_quarter_of_the_rate():
    cfg = load_config(str(ROOT / "configs" / "lite" / "rdsnet_lite0_96.yaml"))
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.RETINANET.NUM_CLASSES = "cpu", 1
    model = build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_slow = name.startswith("backbone.bottom_up.")
            assert rates.pop(parameter) == (0.25 if is_slow else 1) * 0.001, name
    assert not rates


def test_a_backbone_without_a_pyramid_has_the_rate_as_a_whole():
    model = Model()
    model.backbone = model.backbone.bottom_up
    optimizer = Trainer.build_optimizer(config("SOLVER.BACKBONE_LR_FACTOR", 0.1), model)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[p] for p in model.backbone.parameters()} == {0.1 * 0.01}
    assert {rates[p] for p in model.head.parameters()} == {0.01}


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["SOLVER.BACKBONE_LR_FACTOR", 0.25, "MODEL.WEIGHTS", ""],
        ["SOLVER.BACKBONE_LR_FACTOR", 0.25, "INPUT.CHANNELS", 5],
        ["SOLVER.BACKBONE_LR_FACTOR", 0.25, "INPUT.SCALING", "image"],
    ],
    ids=["none", "random weights", "channels", "numbers"],
)
def test_where_the_backbone_brings_nothing_the_groups_are_detectron2s(options):
    model = Model()
    optimizer = Trainer.build_optimizer(config(*options), model)
    norm = {p for m in model.modules() if isinstance(m, nn.GroupNorm) for p in m.parameters()}
    groups = [set(group["params"]) for group in optimizer.param_groups]
    assert sorted(map(len, groups)) == sorted(
        [len(norm), len(list(model.parameters())) - len(norm)]
    )
    assert norm in groups


def test_a_negative_factor_is_refused():
    with pytest.raises(
        ValueError, match=r"SOLVER\.BACKBONE_LR_FACTOR must not be negative, got -1"
    ):
        Trainer.build_optimizer(config("SOLVER.BACKBONE_LR_FACTOR", -1.0), Model())


def test_a_model_without_a_backbone_is_named():
    with pytest.raises(ValueError, match="needs a model with a backbone, and Linear has none"):
        Trainer.build_optimizer(config("SOLVER.BACKBONE_LR_FACTOR", 0.5), nn.Linear(2, 2))


@pytest.mark.parametrize("factor", [1.0, 0.25, 2.0])
@pytest.mark.parametrize("bias", [1.0, 3.0])
def test_the_rate_that_is_logged_is_that_of_the_config(factor, bias):
    """Also where more parameters are of the backbone, which Detectron2 would log."""
    model = Model()
    model.backbone.bottom_up.append(nn.Sequential(*(nn.Linear(4, 4) for _ in range(9))))
    keys = ["SOLVER.BACKBONE_LR_FACTOR", factor, "SOLVER.BIAS_LR_FACTOR", bias]
    optimizer = Trainer.build_optimizer(config(*keys, "SOLVER.OPTIMIZER", "SGD"), model)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (1 + n))
    hook = LRScheduler(optimizer, falling)
    logged = []
    hook.trainer = SimpleNamespace(
        storage=SimpleNamespace(put_scalar=lambda name, value, **_: logged.append(value))
    )
    hook.before_train()
    for _ in range(3):
        optimizer.step()
        hook.after_step()
    assert logged == pytest.approx([0.01, 0.01 / 2, 0.01 / 3])
