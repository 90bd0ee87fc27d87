"""One, two and four processes on the CPU: the same losses, gradients and results.

    python tests/reliability/processes.py

Imports everything once and forks the processes of each case. Prints a line per case; the exit
status is 1 when one of them differs from a single process by more than rounding.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import tiny
import torch

# Relative: all is float64 but the focal loss, which fvcore adds up in float32. Of 2^16 terms, added
# in pairs, a sum rounds 16 times; here on both sides.
TOLERANCE = 2 * 16 * 2**-24
HANG = 3600  # seconds; no machine needs as long
IMAGES = 4
# Every object stream of the core's conventions.
CONFIGS = (
    tiny.SMALL,
    str(tiny.ROOT / "projects" / "FCOS" / "configs" / "rdsnet_fcos_small_nuclei.yaml"),
    str(tiny.ROOT / "projects" / "YOLACT" / "configs" / "rdsnet_s_small_nuclei.yaml"),
)
# As in the authors' code, every process divides by counts of its own images.
OWN_COUNTS = str(tiny.ROOT / "projects/AuthorsCompat/configs/rdsnet_R_50_FPN_mmdet.yaml")
# Which of the four images have no object; process r of W gets images r, r + W, ...
WITHOUT_OBJECTS = {
    "all images with objects": (),
    "one process without objects": (1, 3),
    "no objects anywhere": (0, 1, 2, 3),
}


def in_processes(count: int, folder: Path, work) -> list:
    """``work(rank)`` in so many processes of one gloo group; what it returns, by rank."""
    children = []
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                torch.set_num_threads(1)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.environ.update(
                    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), GROUP_RANK="0"
                )
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port(folder)))
                from rdsnet.training.processes import process_group

                if count == 1:
                    result = work(rank)
                else:
                    with process_group(["MODEL.DEVICE", "cpu"]):
                        result = work(rank)
                torch.save(result, folder / f"{count}-{rank}.pth")
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(pid)
    deadline = time.monotonic() + HANG
    waiting = set(children)
    while waiting:
        for pid in list(waiting):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                waiting.remove(pid)
            if (done and status) or time.monotonic() > deadline:
                for other in waiting:
                    os.kill(other, 9)
                raise RuntimeError(f"{count} processes: one has failed or hangs")
        time.sleep(0.01)
    return [torch.load(folder / f"{count}-{rank}.pth") for rank in range(count)]


def port(folder: Path) -> int:
    return 20000 + abs(hash(str(folder))) % 20000


def one_step(cfg, batch: list[dict]) -> dict:
    """Losses and gradients of a batch, of all processes if there are several."""
    from detectron2.modeling import build_model

    from rdsnet.training.steps import distributed

    torch.manual_seed(0)
    # In float64, where rounding does not turn a ReLU on or off.
    model = distributed(build_model(cfg).double().train())
    losses = model(batch)
    sum(losses.values()).backward()
    plain = getattr(model, "module", model)
    without = [n for n, p in plain.named_parameters() if p.requires_grad and p.grad is None]
    return {
        "losses": torch.stack([losses[name].detach() for name in sorted(losses)]),
        "gradients": {n: p.grad for n, p in plain.named_parameters() if p.grad is not None},
        "without gradient": without,
    }


def mean_step(steps: list[dict]) -> dict:
    """The mean of losses and gradients, a parameter without gradient counting as zero."""
    names = {name for step in steps for name in step["gradients"]}
    return {
        "losses": torch.stack([step["losses"] for step in steps]).mean(0),
        "gradients": {
            name: sum(step["gradients"].get(name, 0) for step in steps) / len(steps)
            for name in names
        },
        "without gradient": [],
    }


def compare_steps(cfg, folder: Path, own_counts: bool = False) -> bool:
    """Several processes against one process with all images or, with ``own_counts``, against the
    mean of what single processes make of each share.
    """
    from rdsnet.training.trainer import Trainer

    cfg.SOLVER.IMS_PER_BATCH = IMAGES
    # One size: GroupNorm sees the padding, which depends on the other images of a batch.
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    whole = next(iter(Trainer.build_train_loader(cfg)))
    good = True
    for number, (name, empty) in enumerate(WITHOUT_OBJECTS.items()):
        batch = [dict(image) for image in whole]
        for i in empty:
            batch[i]["instances"] = batch[i]["instances"][:0]
        case = folder / str(number)
        case.mkdir(parents=True)
        alone = in_processes(1, case, lambda _, b=batch: one_step(cfg, b))[0]
        for count in (2, 4):
            shares = [batch[rank::count] for rank in range(count)]
            found = in_processes(count, case, lambda rank, s=shares: one_step(cfg, s[rank]))
            expected = alone
            if own_counts:
                steps = in_processes(1, case, lambda _, s=shares: [one_step(cfg, b) for b in s])[0]
                expected = mean_step(steps)
            losses = torch.stack([result["losses"] for result in found]).mean(0)
            largest = max(
                relative(gradient, result["gradients"].get(parameter))
                for result in found
                for parameter, gradient in expected["gradients"].items()
            )
            missing = [n for result in [expected, *found] for n in result["without gradient"]]
            error = relative(expected["losses"], losses)
            same = error < TOLERANCE and largest < TOLERANCE and not missing
            good &= same
            print(
                f"{count} processes, {name}: losses differ by {error:.1e}, gradients by "
                f"{largest:.1e}, parameters without gradient: {missing or 'none'}"
                + (" WRONG" if not same else "")
            )
    return good


def relative(expected: torch.Tensor, found: torch.Tensor | None) -> float:
    """Largest difference as a share of the largest value."""
    if found is None:
        return float("inf")
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-7)).item()


def compare_evaluation(cfg, folder: Path) -> bool:
    """The same COCO results from one, two and four processes."""
    from detectron2.modeling import build_model

    from rdsnet.training.trainer import Trainer

    def evaluate(count):
        own = cfg.clone()
        own.OUTPUT_DIR = str(folder / f"evaluation{count}")
        own.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
        torch.manual_seed(0)
        Trainer.test(own, build_model(own).eval())

    files = []
    for count in (1, 2, 4):
        in_processes(count, folder, lambda rank, n=count: evaluate(n))
        name = "inference/coco_instances_results.json"
        files.append((folder / f"evaluation{count}" / name).read_bytes())
    same = files[0] == files[1] == files[2]
    print(f"evaluation by 1, 2 and 4 processes: {len(files[0])} bytes of COCO json, equal: {same}")
    return same


def main() -> int:
    torch.set_num_threads(1)
    from rdsnet.checkpoint import load_config

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        data = tiny.make_data(folder / "data", images=8)
        cfg = load_config(
            tiny.SMALL, tiny.options(data, folder / "output", 1, "DATASETS.TEST", "('tiny_val',)")
        )
        good = compare_evaluation(cfg, folder)
        for config in (*CONFIGS, OWN_COUNTS):
            print(Path(config).stem)
            keys = ("MODEL.RETINANET.NUM_CLASSES", "-1", "INPUT.CROP.ENABLED", "False")
            cfg = load_config(config, tiny.options(data, folder / "output", 1, *keys))
            good &= compare_steps(cfg, folder / Path(config).stem, config == OWN_COUNTS)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
