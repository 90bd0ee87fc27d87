"""The demo: train a small RDSNet on made-up shapes, evaluate it, show what it does.

Minutes on a CPU, nothing to download. Everything is written into one folder, see :func:`run_demo`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase, hooks
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter
from tqdm import tqdm

from rdsnet.checkpoint import load_config
from rdsnet.data.images import read_image
from rdsnet.data.shapes import make_shapes_dataset
from rdsnet.evaluation import results_table
from rdsnet.prediction.pipeline import predict_image
from rdsnet.prediction.predictor import Predictor
from rdsnet.reports.machine import machine
from rdsnet.reports.report import ReportHook, report_run
from rdsnet.training.trainer import Trainer
from rdsnet.visualization import (
    contact_sheet,
    draw_objects,
    match_colors,
    objects_from_annotations,
    objects_from_instances,
    plot_training_curves,
)

NUM_TRAIN, NUM_VAL = 800, 100  # images
IMAGE_SIZE = (256, 320)  # height, width
TRAIN, VAL = "shapes_train", "shapes_val"
# The first held-out images, two to a row: not a choice of the best.
OVERVIEW_IMAGES = 6
CELL_WIDTH = 480  # pixels of the overview
SCORE_THRESHOLD = 0.5
METRICS = ("AP", "AP50", "AP75", "AP90")
LOGGERS = ("detectron2", "fvcore", "rdsnet", "py.warnings")
# What an earlier run may have left in the output folder; files of other names are not touched.
OWN_FILES = (
    "*.png results.md report.html config.yaml log.txt metrics.json *.pth last_checkpoint data "
    "inference"
).split()


@dataclass
class DemoResult:
    """What a demo found: APs in 0..100 as of the evaluator, and its durations in seconds."""

    results: dict[str, dict[str, float]]
    iterations: int
    training_seconds: float
    seconds: float

    def table(self) -> str:
        return results_table(self.results, METRICS)


def run_demo(
    config_file: str | Path, output: str | Path, iterations: int | None = None
) -> DemoResult:
    """Make data, train, evaluate, draw; start afresh when there are results of an earlier run.

    Writes into ``output``: ``overview.png`` (held-out images with ground truth and predictions),
    ``results.md`` (APs and how they were obtained), ``loss_curve.png``, ``model_final.pth`` and
    ``config.yaml`` (for ``rdsnet predict``), ``log.txt``, ``metrics.json``, ``data/`` (the images),
    ``inference/`` (all detections on held-out images) and ``report.html``. Progress goes to stderr.

    Args:
        config_file: the model and its schedule; data and output folder are the demo's.
        output: made if missing.
        iterations: instead of the config's ``SOLVER.MAX_ITER``; the steps of the learning rate
            move in proportion. A short run makes only as many images as it looks at.
    """
    start = time.perf_counter()
    output = Path(output)
    clear_output(output)
    with logging_to_file(output / "log.txt") as log:
        cfg = demo_config(config_file, output, iterations)
        (output / "config.yaml").write_text(cfg.dump())
        seed_all_rng(max(cfg.SEED, 0))
        trainer = DemoTrainer(cfg)
        trainer.resume_or_load(resume=False)
        training_start = time.perf_counter()
        trainer.train()
        training_seconds = time.perf_counter() - training_start
        num_val = len(DatasetCatalog.get(VAL))
        print(f"Evaluating on {num_val} held-out images ...", file=sys.stderr, flush=True)
        with contextlib.redirect_stdout(log):
            results = Trainer.test(cfg, trainer.model)
            report_run(cfg, trainer.model)
        draw_overview(cfg, output / "overview.png")
        plot_training_curves(output / "metrics.json", output / "loss_curve.png")
    seconds = time.perf_counter() - start
    demo = DemoResult(results, cfg.SOLVER.MAX_ITER, training_seconds, seconds)
    (output / "results.md").write_text(report(demo, cfg))
    return demo


def clear_output(output: Path) -> None:
    """Make the folder, or remove what an earlier demo wrote there."""
    output.mkdir(parents=True, exist_ok=True)
    for pattern in OWN_FILES:
        for path in output.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def demo_config(config_file: str | Path, output: Path, iterations: int | None) -> CfgNode:
    """Make the data and the config that trains on it."""
    opts = ["OUTPUT_DIR", str(output), "DATASETS.TRAIN", f"('{TRAIN}',)"]
    opts += ["DATASETS.TEST", f"('{VAL}',)", "MODEL.RETINANET.NUM_CLASSES", "-1"]
    # The schedule says how many images are needed, and the data then how many classes there are.
    solver = load_config(config_file, [*opts[:2], "MODEL.RETINANET.NUM_CLASSES", "1"]).SOLVER
    if iterations is not None:
        if iterations < 1:
            raise ValueError(f"the number of iterations must be at least 1, got {iterations}")
        share = iterations / solver.MAX_ITER
        steps = tuple(sorted({int(step * share) for step in solver.STEPS} - {0}))
        opts += ["SOLVER.MAX_ITER", str(iterations), "SOLVER.STEPS", str(steps)]
        opts += ["SOLVER.WARMUP_ITERS", str(round(solver.WARMUP_ITERS * min(share, 1)))]
    seen = (iterations or solver.MAX_ITER) * solver.IMS_PER_BATCH
    num_train, num_val = min(NUM_TRAIN, seen), min(NUM_VAL, max(seen // 4, OVERVIEW_IMAGES))
    print(f"Drawing {num_train} + {num_val} images of shapes ...", file=sys.stderr, flush=True)
    paths = make_shapes_dataset(
        output / "data", num_train=num_train, num_val=num_val, size=IMAGE_SIZE
    )
    files = [
        [TRAIN, paths["train_json"], paths["train_images"]],
        [VAL, paths["val_json"], paths["val_images"]],
    ]
    return load_config(config_file, [*opts, "DATASETS.COCO_FILES", repr(files)])


class ProgressBar(HookBase):
    """Iterations, losses and the time left, on one line of the terminal."""

    def before_train(self) -> None:
        # Without a terminal every refresh is a line of its own.
        self._bar = tqdm(
            total=self.trainer.max_iter,
            desc="Training",
            unit="it",
            mininterval=0.5 if sys.stderr.isatty() else 20,
            dynamic_ncols=True,
        )

    def after_step(self) -> None:
        if self.trainer.iter % 10 == 0:
            self._bar.set_postfix_str(self._losses(), refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        self._bar.close()

    def _losses(self) -> str:
        histories = self.trainer.storage.histories()
        names = {"total_loss": "loss", "loss_cls": "class", "loss_box_reg": "box"}
        names["loss_mask"] = "mask"
        shown = (
            f"{title} {histories[name].median(20):.2f}"
            for name, title in names.items()
            if name in histories
        )
        return ", ".join(shown)


class DemoTrainer(Trainer):
    """Shows a progress bar; evaluation and report come after training, once."""

    def build_hooks(self) -> list[HookBase]:
        later = hooks.EvalHook, ReportHook
        kept = [hook for hook in super().build_hooks() if not isinstance(hook, later)]
        return [ProgressBar(), *kept]

    def build_writers(self) -> list[EventWriter]:
        metrics = os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")
        return [CommonMetricPrinter(self.cfg.SOLVER.MAX_ITER), JSONWriter(metrics)]


def draw_overview(cfg: CfgNode, path: Path) -> None:
    """Held-out images with ground truth beside what the saved model predicts."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    cfg.MODEL.RDSNET.DENSE_MASKS = False
    predictor = Predictor(cfg)
    names = MetadataCatalog.get(VAL).thing_classes
    pictures: list[np.ndarray] = []
    for record in DatasetCatalog.get(VAL)[:OVERVIEW_IMAGES]:
        image = read_image(record["file_name"], "BGR")
        truth = objects_from_annotations(record, names)
        found = objects_from_instances(predict_image(predictor, image, SCORE_THRESHOLD), names)
        found = match_colors(found, truth)
        for objects in (truth, found):
            pictures.append(draw_objects(image[:, :, ::-1], objects, min_side=CELL_WIDTH))
    sheet = contact_sheet(
        [pictures[k : k + 4] for k in range(0, len(pictures), 4)],
        ["ground truth", "RDSNet"] * 2,
        footer="RDSNet's boxes: solid = after MBRM, dashed = as regressed. "
        f"Shown are objects with a score of at least {SCORE_THRESHOLD:g}.",
        cell_width=CELL_WIDTH,
    )
    cv2.imwrite(str(path), sheet[:, :, ::-1])


def report(demo: DemoResult, cfg: CfgNode) -> str:
    """results.md: the APs and how they were obtained."""
    num_train, num_val = len(DatasetCatalog.get(TRAIN)), len(DatasetCatalog.get(VAL))
    height, width = IMAGE_SIZE
    return f"""# RDSNet demo

{demo.table()}

COCO's AP, in percent, on {num_val} held-out images of synthetic shapes ({height} x {width} px, \
{cfg.MODEL.RETINANET.NUM_CLASSES} classes).
"box" is after the mask based boundary refinement (MBRM), "box without MBRM" are the same
detections with the boxes as they were regressed.

- Training: from random weights, {demo.iterations} iterations of {cfg.SOLVER.IMS_PER_BATCH} \
images, {num_train} different ones, {demo.training_seconds:.0f} s ({demo.seconds:.0f} s with \
data, evaluation and pictures)
- Machine: {machine(cfg)}
- Versions: Python {platform.python_version()}, torch {torch.__version__}, torchvision \
{torchvision.__version__}
- Date: {date.today().isoformat()}

![held-out images](overview.png)

![losses](loss_curve.png)
"""


@contextlib.contextmanager
def logging_to_file(path: Path) -> Iterator:
    """Send logs and warnings to a file instead of the terminal; yields the file."""
    with open(path, "w", encoding="utf-8") as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s"))
        loggers = [logging.getLogger(name) for name in LOGGERS]
        before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
        logging.captureWarnings(True)
        for logger in loggers:
            logger.setLevel(logging.DEBUG)
            logger.propagate = False
            logger.handlers[:] = [handler]
        try:
            yield file
        finally:
            logging.captureWarnings(False)
            for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
                logger.setLevel(level)
                logger.propagate = propagate
                logger.handlers[:] = handlers
