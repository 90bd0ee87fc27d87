"""``rdsnet train --engine ray``: the workers of Ray do what other processes do."""

import os
import subprocess
import sys

import pytest
import torch
from helpers.hanging import HANG
from reliability import tiny

from rdsnet.cli import main

pytest.importorskip("ray.train", reason="needs rdsnet[ray]")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "2"], "--workers and --address go with --engine ray"),
        (["--engine", "ray", "--num-gpus", "2"], "give --workers N instead of --num-gpus"),
        (["--engine", "ray", "--eval-only"], "and no --eval-only"),
        (["--engine", "ray", "--workers", "3"], "IMS_PER_BATCH 2 cannot be shared equally by 3"),
    ],
)
def test_what_does_not_fit_is_refused(data, tmp_path, capsys, words, message):
    command = ["train", "--config-file", tiny.SMALL, *words, *tiny.options(data, tmp_path, 2)]
    assert main(command) == 2
    assert message in capsys.readouterr().err


@pytest.mark.alone
@pytest.mark.slow
def test_two_workers_train_and_go_on_as_two_processes_of_torchrun(data, tmp_path):
    by_torchrun, by_ray = tmp_path / "torchrun", tmp_path / "ray"
    words = [*("--nproc-per-node", "2"), str(tiny.ROOT / "train_net.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(command):
        ended = subprocess.run(
            [sys.executable, "-m", *command],
            env=environment,
            cwd=tiny.ROOT,
            capture_output=True,
            text=True,
            timeout=HANG,
        )
        return ended.returncode, ended.stdout + ended.stderr

    config = ["--config-file", tiny.SMALL, "--resume"]
    torchrun = ["torch.distributed.run", "--standalone", *words]
    ray = ["rdsnet.cli", "train", "--engine", "ray", "--workers", "2"]
    for command, folder in ((torchrun, by_torchrun), (ray, by_ray)):
        for iterations in (2, 4):  # the second goes on
            status, output = run([*command, *config, *tiny.options(data, folder, iterations)])
            assert status == 0, output[-3000:]
    first, second = (
        torch.load(folder / "model_final.pth")["model"] for folder in (by_torchrun, by_ray)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    wrong = tiny.options(data, by_ray, 6, "MODEL.RETINANET.NUM_CLASSES", "9")
    status, output = run([*ray, *config, *wrong])
    assert status == 2 and "a worker of Ray has failed" in output and "NUM_CLASSES" in output
