"""What tests of the page and of the service share: a model, an image, and what is no image."""

import re
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from helpers.hanging import HANG
from PIL import Image

# A pickle, a yaml file, a zip and a script.
NO_IMAGES = (b"\x80\x04cos\nsystem\n", b"_BASE_: /etc/passwd", b"PK\x03\x04", b"<svg/>")


@pytest.fixture(scope="module")
def weights(model_files, tmp_path_factory):
    """The model of random weights, but one that believes in objects: scores around 0.5."""
    checkpoint = torch.load(model_files["weights"], weights_only=True)
    (name,) = [n for n in checkpoint["model"] if n.endswith("cls_score.bias")]
    checkpoint["model"][name] += 4.6
    path = tmp_path_factory.mktemp("app") / "model.pth"
    torch.save(checkpoint, path)
    return str(path)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 255, (90, 140, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photos") / "street.png"
    Image.fromarray(pixels).save(path)
    return path


@contextmanager
def answering(command, *arguments):
    """Inside, ``rdsnet COMMAND`` answers on a free port; gives its address and process."""
    words = [sys.executable, "-m", "rdsnet.cli", command, *arguments]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert address
        yield address[0], process
    finally:
        process.terminate()
        process.wait(HANG)
