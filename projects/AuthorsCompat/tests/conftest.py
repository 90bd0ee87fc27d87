import copy
from pathlib import Path

import pytest
from detectron2.modeling import build_model
from helpers.golden_data import authors_state_dict
from helpers.rounding import disturbed, probable

import rdsnet
from rdsnet.checkpoint import convert_mmdet_state_dict

CONFIGS = Path(__file__).parents[1] / "configs"


def compat_config(depth: int = 50):
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(str(CONFIGS / f"rdsnet_R_{depth}_FPN_mmdet.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    # The golden files were made without random subsampling of positive anchors.
    cfg.MODEL.RDSNET.MAX_TRAIN_MASKS = 100000
    return cfg


@pytest.fixture(scope="session")
def loaded_model():
    """The compat model with weights made by the weight rule of the golden files."""
    model = build_model(compat_config())
    model.load_state_dict(convert_mmdet_state_dict(authors_state_dict()))
    return model


@pytest.fixture
def model(loaded_model):
    """The same, in evaluation mode."""
    return loaded_model.eval()


@pytest.fixture(scope="session")
def exact_model(loaded_model):
    """The same in float64, in evaluation mode: what it computes depends on no processor."""
    return copy.deepcopy(loaded_model).double().eval()


@pytest.fixture(scope="session")
def moved_model(exact_model):
    """The same with weights that are off by what the authors' float32 has probably rounded."""
    return disturbed(exact_model, probable)


@pytest.fixture(scope="session")
def make_config():
    return compat_config
