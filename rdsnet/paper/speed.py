"""Images per second of the trained models, taking turns on the same images in one process."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog
from torch import nn

from rdsnet.checkpoint import Checkpointer
from rdsnet.data.datasets import register_coco_files
from rdsnet.data.mapper import build_mapper
from rdsnet.modeling import RDSNet
from rdsnet.paper.plan import Paper
from rdsnet.paper.trainings import Training
from rdsnet.training.trainer import Trainer

FILE_NAME = "speed.json"
_IMAGES, _ROUNDS = 10, 3  # the first round warms up


def images_per_second(paper: Paper) -> dict[str, float]:
    """{training: 1 / median seconds} of the first seed's models, one image at a time.

    From the image as the network takes it to masks of its size; of "retinanet" to boxes. Measured
    once and kept in ``speed.json``; again where it has not all the models.
    """
    path = paper.folder / FILE_NAME
    kept = json.loads(path.read_text()) if path.is_file() else {}
    if not {training.name for training in paper.trainings} <= kept.keys():
        kept = _measured(paper)
        path.write_text(json.dumps(kept, indent=1) + "\n")
    return kept


def _measured(paper: Paper) -> dict[str, float]:
    calls = {training.name: _call(paper, training) for training in paper.trainings}
    times: dict[str, list[float]] = {name: [] for name in calls}
    device = "cpu"
    for number in range(_IMAGES):
        for repetition in range(_ROUNDS):
            for name, (call, inputs, device) in calls.items():
                start = time.perf_counter()
                call(inputs[number % len(inputs)])
                if device == "cuda":
                    torch.cuda.synchronize()
                if repetition > 0:
                    times[name].append(time.perf_counter() - start)
    return {name: round(1 / statistics.median(seconds), 2) for name, seconds in times.items()}


def _call(paper: Paper, training: Training) -> tuple[Callable[[dict], object], list[dict], str]:
    """What is timed, the images for it, and the device."""
    cfg = paper.config(training, paper.seeds[0])
    folder = Path(cfg.OUTPUT_DIR)
    fitted = folder / "mbrm" / "model_final.pth"
    register_coco_files(cfg)
    model = Trainer.build_model(cfg).eval()
    weights = fitted if fitted.is_file() else folder / "model_final.pth"
    Checkpointer(model).load(str(weights))
    mapper = build_mapper(cfg, is_train=False)
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])[:_IMAGES]
    alone = training.name.startswith("retinanet")
    call = _detector(model) if alone else _whole(model)
    return call, [mapper(record) for record in records], cfg.MODEL.DEVICE


def _whole(model: nn.Module) -> Callable[[dict], object]:
    @torch.no_grad()
    def call(inputs: dict) -> object:
        return model([inputs])

    return call


def _detector(model: RDSNet) -> Callable[[dict], object]:
    """The object stream without representations, which is RetinaNet."""

    @torch.no_grad()
    def call(inputs: dict) -> object:
        images = model.preprocess_image([inputs])
        predictions = model.object_stream(model.backbone(images.tensor))
        return model.detect(predictions, images.image_sizes, [inputs])

    return call
