"""Several processes do what one does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.hanging import HANG
from reliability import tiny

from rdsnet.checkpoint import load_config
from rdsnet.data.train_loader import TrainLoader
from rdsnet.training.trainer import Trainer

HERE = Path(__file__).parent


@pytest.mark.alone
@pytest.mark.slow
def test_two_and_four_processes_give_losses_gradients_and_results_of_one():
    """With and without objects in the images of a process; see the script."""
    run = subprocess.run(
        [sys.executable, str(HERE / "processes.py")], capture_output=True, text=True, timeout=HANG
    )
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert run.stdout.count("parameters without gradient: none") == 4 * 6


def stream(cfg, monkeypatch, rank=0, world_size=1, workers=0, start=0, number=8):
    """File names and pixels of the images in batches start .. number."""
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: world_size)
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: rank)
    loader: TrainLoader = Trainer.build_train_loader(cfg)
    loader.num_workers, loader.batches = workers, start
    batches = iter(loader)
    return [
        [(image["file_name"], image["image"].numpy().tobytes()) for image in next(batches)]
        for _ in range(start, number)
    ]


def test_the_data_stream_depends_on_the_seed_alone(data, tmp_path, monkeypatch):
    cfg = load_config(tiny.SMALL, tiny.options(data, tmp_path, 1))
    expected = stream(cfg, monkeypatch)
    # More than there are images: they are augmented differently each time.
    assert len({image for batch in expected for image in batch}) > 12
    torch.manual_seed(99)
    assert stream(cfg, monkeypatch, workers=2) == expected
    assert stream(cfg, monkeypatch, start=5) == expected[5:]
    shares = [stream(cfg, monkeypatch, rank=rank, world_size=2) for rank in (0, 1)]
    for whole, first, second in zip(expected, *shares, strict=True):
        assert sorted(first + second) == sorted(whole)
    cfg.SEED = 8
    assert stream(cfg, monkeypatch) != expected


STILL_LOADING = """
from rdsnet.data.train_loader import TrainLoader
records = [{"width": 4, "height": 4, "number": n} for n in range(4)]
from detectron2.data.samplers import TrainingSampler
loader = TrainLoader(
    records, dict, seed=1, batch_size=2, num_workers=1,
    sampler=lambda dataset, seed: TrainingSampler(len(dataset), seed=seed),
)
batches = iter(loader)
try:
    print(len(next(batches)))
    raise KeyboardInterrupt
except KeyboardInterrupt as error:
    kept = error  # with the frames that use the loader
"""


def test_a_process_that_still_holds_its_workers_ends():
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STILL_LOADING],
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert (run.returncode, run.stdout) == (0, "2\n"), run.stderr


def test_loading_an_image_leaves_the_random_state_alone(data, tmp_path):
    cfg = load_config(tiny.SMALL, tiny.options(data, tmp_path, 1))
    batches = iter(Trainer.build_train_loader(cfg))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    next(batches)
    assert torch.equal(torch.rand(3), expected)


def test_a_batch_that_cannot_be_shared_is_refused(data, tmp_path, monkeypatch):
    cfg = load_config(tiny.SMALL, tiny.options(data, tmp_path, 1))
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="IMS_PER_BATCH 2 cannot be shared equally by 3"):
        Trainer.build_train_loader(cfg)


@pytest.mark.alone
@pytest.mark.slow
def test_torchrun_on_two_hosts_trains_and_resumes(data, tmp_path):
    """Two torchrun of one process each that meet on the loopback interface."""
    for iterations in (2, 4):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        hosts = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
                    *("--node-rank", str(node), "--nproc-per-node", "1"),
                    *("--master-addr", "127.0.0.1", "--master-port", str(port)),
                    *(str(tiny.ROOT / "train_net.py"), "--config-file", tiny.SMALL, "--resume"),
                    *tiny.options(data, tmp_path, iterations),
                ],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                cwd=tiny.ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for node in (0, 1)
        ]
        for host in hosts:
            output, _ = host.communicate(timeout=HANG)
            assert host.returncode == 0, output[-3000:]
        assert torch.load(tmp_path / "model_final.pth")["iteration"] == iterations - 1
    assert [line["iteration"] for line in tiny.curve(tmp_path)] == [1, 3]
