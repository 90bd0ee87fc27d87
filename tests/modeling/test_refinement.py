"""What refines boxes: which refinement a config asks for, what each refuses, and the baseline."""

import pytest
import torch

import rdsnet
from rdsnet.modeling.mbrm import MBRM
from rdsnet.modeling.refinement import EnclosingBoxes, build_refinement


def test_direct_is_the_enclosing_rectangle_of_the_mask():
    generator = torch.Generator().manual_seed(2)
    probability = torch.rand(20, 30, 40, generator=generator) ** 4
    probability[0], probability[1], probability[2] = 0.39, 0.0, 1.0
    probability[3:, :, ::2] = 0
    boxes = torch.rand(20, 4, generator=generator)
    found = EnclosingBoxes(0.4)(probability.amax(1), probability.amax(2), boxes)
    assert torch.equal(found[:2], boxes[:2])  # empty masks
    for mask, box in zip(probability[2:] > 0.4, found[2:].tolist(), strict=True):
        y, x = mask.nonzero(as_tuple=True)
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def config(**keys):
    cfg = rdsnet.get_cfg()
    cfg.MODEL.RDSNET.MBRM.update(keys)
    return cfg


def test_config_chooses_the_refinement():
    assert isinstance(build_refinement(config(METHOD="direct")), EnclosingBoxes)
    assert build_refinement(config(METHOD="none")) is None
    assert build_refinement(config(ENABLED=False)) is None
    keys = {"GAMMA": 0.1, "MIN_SIGMA": 0.5, "RADIUS": 2, "READOUT": "expectation"}
    mbrm = build_refinement(config(METHOD="mbrm", **keys))
    assert (mbrm.gamma, mbrm.min_sigma, mbrm.radius, mbrm.readout) == tuple(keys.values())


@pytest.mark.parametrize("keys", [{"METHOD": "exact"}, {"READOUT": "median"}], ids=str)
def test_unknown_choices_are_refused_with_those_that_there_are(keys):
    with pytest.raises(ValueError, match="(?i)must be one of .*got"):
        build_refinement(config(**keys))


def test_a_kernel_of_another_radius_is_refused():
    weights = {f"mbrm.{name}": value for name, value in MBRM(radius=2).state_dict().items()}
    holder = torch.nn.ModuleDict({"mbrm": MBRM(radius=4)})
    with pytest.raises(ValueError, match=r"\(5 weights\) is not one of radius 4 \(9 weights\)"):
        holder.load_state_dict(weights)
    # Detectron2's checkpointer drops weights of another shape first.
    del weights["mbrm.weight"]
    with pytest.raises(ValueError, match="MODEL.RDSNET.MBRM.RADIUS"):
        holder.load_state_dict(weights, strict=False)
    holder.load_state_dict({}, strict=False)  # no kernel at all: the one it starts with


def test_starts_from_the_published_kernel_at_radius_four_and_an_edge_detector_elsewhere():
    assert MBRM(radius=4).weight.flatten()[3].item() == pytest.approx(-3.2545)
    assert MBRM(radius=2).weight.flatten().tolist() == [0, -1, 1, 0, 0]


@pytest.mark.parametrize(("kwargs", "name"), [({"gamma": 0.0}, "gamma"), ({"radius": 0}, "radius")])
def test_unusable_parameters_are_named(kwargs, name):
    with pytest.raises(ValueError, match=name):
        MBRM(**kwargs)


@pytest.mark.parametrize(
    "refinement", [MBRM(), MBRM(readout="expectation"), EnclosingBoxes()], ids=str
)
def test_no_boxes(refinement):
    assert refinement(torch.zeros(0, 50), torch.zeros(0, 40), torch.zeros(0, 4)).shape == (0, 4)
