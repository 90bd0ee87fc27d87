"""Prediction by Ray with two workers, undisturbed, and killed in the middle."""

import json
import random

import pytest
import torch
from helpers.folders import contents

from rdsnet.cli import main

for package in ("ray", "pyarrow"):
    pytest.importorskip(package, reason="needs rdsnet[ray]")

from reliability.ray_kills import disturbed, make_images, run  # noqa: E402

IMAGES, SHARD_SIZE = 300, 20
FORMATS = ("coco_instances_results.json", "images.json", "objects.csv")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray") / "images"
    make_images(folder, IMAGES, seed=random.randrange(1 << 30))
    return folder


@pytest.fixture(scope="module")
def calm(images):
    """The folder of an undisturbed run."""
    output = images.parent / "calm"
    run(images, output, SHARD_SIZE)
    return output


@pytest.mark.alone
@pytest.mark.slow
def test_two_workers_find_what_one_process_finds(images, calm, monkeypatch):
    monkeypatch.chdir(images.parent)
    local = images.parent / "local"
    words = ["--weights", "nuclei", "--input", str(images), "--output", str(local)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker
    assert main(["predict", *words, "--format", "coco,csv"]) == 1
    torch.set_num_threads(threads)
    assert json.loads((local / "coco_instances_results.json").read_text())
    for name in FORMATS:
        assert (calm / name).read_bytes() == (local / name).read_bytes(), name
    failures = (calm / "failures.csv").read_text().splitlines()
    assert len(failures) == 1 + IMAGES // 50


@pytest.mark.alone
@pytest.mark.slow
def test_a_run_whose_processes_are_killed_ends_as_an_undisturbed_one(images, calm):
    output = images.parent / "disturbed"
    killed = disturbed(images, output, SHARD_SIZE, drivers=3, workers=1, rng=random.Random())
    assert killed == (3, 1)
    assert contents(output) == contents(calm)
