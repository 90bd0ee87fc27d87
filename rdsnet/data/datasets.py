"""Your own data in COCO format: registered from the config, checked when it is loaded.

An entry ``[name, json, image_root]`` of ``DATASETS.COCO_FILES`` becomes a Detectron2 dataset
called ``name``. Registering reads the categories only; images and annotations are read and checked
(:mod:`rdsnet.data.checks`) when Detectron2 first asks for them.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

from rdsnet.data.checks import ON_INVALID, clean_coco, coco_categories
from rdsnet.data.class_names import distinct_names
from rdsnet.data.coco_json import read_coco_json
from rdsnet.data.crowds import crowd_summary
from rdsnet.data.ids import id_order, shown_id, whole_number
from rdsnet.data.rle import compressed_rle

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CocoFile:
    """One entry of ``DATASETS.COCO_FILES``, paths expanded and absolute."""

    name: str
    json_file: str
    image_root: str
    on_invalid: str = "error"
    crowds_are_objects: bool = False


# What register_coco_files has registered: name -> (entry, time of the json's last change).
_registered: dict[str, tuple[CocoFile, int]] = {}


def coco_files(cfg: CfgNode) -> list[CocoFile]:
    """The entries of ``DATASETS.COCO_FILES``, with ``~`` and ``$VARIABLES`` in paths expanded.

    Raises:
        ValueError: for an entry that is not ``[name, json, image_root]``, a name that stands for
            two files, or an unknown ``DATASETS.INVALID_ANNOTATIONS``.
    """
    form = "[['name', 'annotations.json', 'image folder'], ...]"
    entries, on_invalid = cfg.DATASETS.COCO_FILES, cfg.DATASETS.INVALID_ANNOTATIONS
    if on_invalid not in ON_INVALID:
        raise ValueError(
            f"DATASETS.INVALID_ANNOTATIONS must be one of {ON_INVALID}, got {on_invalid!r}"
        )
    if not isinstance(entries, (list, tuple)):
        raise ValueError(f"DATASETS.COCO_FILES must be a list {form}, got {entries!r}")
    files: dict[str, CocoFile] = {}
    for entry in entries:
        is_triple = isinstance(entry, (list, tuple)) and len(entry) == 3
        if not is_triple or not all(isinstance(part, str) and part for part in entry):
            raise ValueError(
                f"DATASETS.COCO_FILES must be a list of triples of strings {form}; "
                f"this entry is not: {entry!r}"
            )
        name, json_file, image_root = entry
        file = CocoFile(
            name,
            _expand(json_file),
            _expand(image_root),
            on_invalid,
            cfg.DATASETS.CROWDS_ARE_OBJECTS,
        )
        if files.setdefault(name, file) != file:
            raise ValueError(
                f"DATASETS.COCO_FILES uses the name '{name}' for two files: "
                f"{files[name].json_file} and {file.json_file}. Give each its own name."
            )
    return list(files.values())


def register_coco_files(cfg: CfgNode) -> None:
    """Register every file of ``DATASETS.COCO_FILES`` with Detectron2's catalogs.

    May be called again, with the same or more files. Sets the metadata ``thing_classes``,
    ``thing_dataset_id_to_contiguous_id``, ``json_file``, ``image_root`` and ``evaluator_type``
    ("coco"). Images and annotations are loaded when ``DatasetCatalog.get(name)`` is called; where
    the checks left something out or completed it, ``json_file`` then becomes a checked copy, so
    that evaluation sees the same annotations: load a dataset before making its evaluator.

    Raises:
        ValueError: for malformed entries or categories, or a name that is already taken by
            another dataset.
        FileNotFoundError: for a json that does not exist.
    """
    for file in coco_files(cfg):
        _register(file)


def with_num_classes(cfg: CfgNode) -> CfgNode:
    """The config with ``MODEL.RETINANET.NUM_CLASSES`` known.

    Returns:
        ``cfg`` itself when the number is given; when it is -1, a clone with the number of
        categories of the first dataset in ``DATASETS.TRAIN`` (or else ``DATASETS.TEST``).

    Raises:
        ValueError: when it is -1 and there is no such dataset or its categories are unknown, or
            when it is neither -1 nor positive.
    """
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    if num_classes >= 1:
        return cfg
    if num_classes != -1:
        raise ValueError(
            f"MODEL.RETINANET.NUM_CLASSES must be positive, or -1 to take it from the data; "
            f"got {num_classes}"
        )
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    remedy = (
        "Set MODEL.RETINANET.NUM_CLASSES to the number of categories, or add "
        "['name', 'annotations.json', 'image folder'] to DATASETS.COCO_FILES and that name to "
        "DATASETS.TRAIN."
    )
    if not names:
        raise ValueError(
            "MODEL.RETINANET.NUM_CLASSES is -1 (take it from the data), but DATASETS.TRAIN and "
            f"DATASETS.TEST are empty. {remedy}"
        )
    try:
        classes = _categories(cfg, names[0])
    except FileNotFoundError as error:
        raise ValueError(
            f"MODEL.RETINANET.NUM_CLASSES is -1 (take it from the data), but {error}. Set "
            "MODEL.RETINANET.NUM_CLASSES to the number of categories that the model was trained "
            "with."
        ) from error
    if classes is None:
        raise ValueError(
            f"MODEL.RETINANET.NUM_CLASSES is -1 (take it from the data), but '{names[0]}' is "
            "neither in DATASETS.COCO_FILES nor a registered dataset with thing_classes. "
            f"{remedy}"
        )
    known = cfg.clone()
    known.defrost()
    known.MODEL.RETINANET.NUM_CLASSES = len(classes)
    if cfg.is_frozen():
        known.freeze()
    return known


def with_classes(cfg: CfgNode) -> CfgNode:
    """The config with ``DATASETS.CLASSES`` as the data declares them.

    Returns:
        A clone with [category id, name] of every class, from the first dataset of
        ``DATASETS.TRAIN`` and ``DATASETS.TEST`` whose categories are known and as many as
        ``MODEL.RETINANET.NUM_CLASSES``; where there is none, ``cfg`` itself.
    """
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        try:
            classes = _categories(cfg, name)
        except FileNotFoundError:  # prediction needs no data
            continue
        if classes and len(classes) == cfg.MODEL.RETINANET.NUM_CLASSES:
            known = cfg.clone()
            known.defrost()
            known.DATASETS.CLASSES = [[id_, label] for id_, label in classes.items()]
            if cfg.is_frozen():
                known.freeze()
            return known
    return cfg


def class_metadata(cfg: CfgNode) -> tuple[list[str] | None, list[int | str]]:
    """Distinct names of the model's classes (None: unknown), and the category id of each.

    From the data where it is there, else from ``DATASETS.CLASSES``; where neither is, ids are the
    class numbers from 0.
    """
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    classes = with_classes(cfg).DATASETS.CLASSES
    if len(classes) != num_classes:
        return None, list(range(num_classes))
    return _distinct(classes), [id_ for id_, _ in classes]


def register_class_names(cfg: CfgNode) -> None:
    """Give the datasets of a config their class names, also where they cannot be loaded any more.

    So that ``MetadataCatalog.get(cfg.DATASETS.TEST[0])``, which Detectron2's DefaultPredictor and
    Visualizer use, has ``thing_classes`` without the json. Registered datasets keep theirs.
    """
    if len(cfg.DATASETS.CLASSES) != cfg.MODEL.RETINANET.NUM_CLASSES:
        return
    names = _distinct(cfg.DATASETS.CLASSES)
    ids = {id_: k for k, (id_, _) in enumerate(cfg.DATASETS.CLASSES)}
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        if name in DatasetCatalog:
            continue
        if MetadataCatalog.get(name).get("thing_classes") != names:
            MetadataCatalog.pop(name)  # of another model: metadata cannot be changed
        MetadataCatalog.get(name).set(thing_classes=names, thing_dataset_id_to_contiguous_id=ids)


def check_num_classes(cfg: CfgNode) -> None:
    """Refuse datasets whose categories don't fit the config or each other.

    Looks at every dataset of ``DATASETS.TRAIN`` and ``DATASETS.TEST`` whose categories are known.

    Raises:
        ValueError: when the number of categories is not ``MODEL.RETINANET.NUM_CLASSES``, or when
            two datasets declare different categories.
    """
    num_classes = with_num_classes(cfg).MODEL.RETINANET.NUM_CLASSES
    first: tuple[str, dict[int | str, str]] | None = None
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        classes = _categories(cfg, name)
        if classes is None:
            continue
        if len(classes) != num_classes:
            raise ValueError(
                f"category ids that don't fit the config: dataset '{name}' declares "
                f"{len(classes)} categories ({_listed(classes)}), but "
                f"MODEL.RETINANET.NUM_CLASSES is {num_classes}. Set it to {len(classes)}, or to "
                "-1 to take it from the data."
            )
        if first is None:
            first = (name, classes)
        elif _meant(classes) != _meant(first[1]):
            raise ValueError(
                f"datasets '{first[0]}' and '{name}' declare different categories: "
                f"{_differences(first, (name, classes))}. Give both json files the same "
                "'categories'."
            )


def load_coco_file(file: CocoFile) -> list[dict]:
    """Read and check a file; see :func:`rdsnet.data.checks.check_coco` for what it raises.

    Returns:
        Detectron2's standard dataset dicts, sorted by image id: ``file_name`` (full path),
        ``height``, ``width``, ``image_id`` and ``annotations``, each with ``bbox`` (XYWH_ABS),
        ``category_id`` (0 .. K-1 in the order of the json's category ids), ``iscrowd`` and
        ``segmentation`` (polygons or compressed RLE).
    """
    return coco_records(_checked_content(file)[0], file.image_root)


def _register(file: CocoFile) -> None:
    name = file.name
    changed = os.stat(file.json_file).st_mtime_ns if os.path.isfile(file.json_file) else 0
    if name in DatasetCatalog:
        known, known_changed = _registered.get(name, (None, 0))
        if known is None:
            raise ValueError(
                f"DATASETS.COCO_FILES: the name '{name}' already belongs to a dataset that "
                f"Detectron2 or your code has registered. Choose another name for "
                f"{file.json_file}."
            )
        if (known.json_file, known.image_root) != (file.json_file, file.image_root):
            raise ValueError(
                f"DATASETS.COCO_FILES: the name '{name}' already stands for {known.json_file} "
                f"with images in {known.image_root}. Choose another name for {file.json_file} "
                f"with images in {file.image_root}."
            )
        if (known, known_changed) == (file, changed):
            return
    classes = coco_categories(file.json_file)
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, lambda: _load_registered(file))
    MetadataCatalog.get(name).set(
        thing_classes=distinct_names(classes),
        thing_dataset_id_to_contiguous_id={id_: i for i, id_ in enumerate(classes)},
        json_file=file.json_file,
        image_root=file.image_root,
        evaluator_type="coco",
    )
    _registered[name] = (file, changed)


def _load_registered(file: CocoFile) -> list[dict]:
    content, is_changed = _checked_content(file)
    if is_changed:
        # COCO's evaluation reads the json itself and would stumble over what was left out here.
        # (Metadata refuses that an attribute gets another value, hence vars.)
        vars(MetadataCatalog.get(file.name))["json_file"] = _write_copy(file, content)
    return coco_records(content, file.image_root)


def _checked_content(file: CocoFile) -> tuple[dict, bool]:
    original = read_coco_json(file.json_file)
    content = clean_coco(
        original, file.json_file, file.image_root, file.on_invalid, file.crowds_are_objects
    )
    crowds = sum(annotation["iscrowd"] for annotation in content["annotations"])
    if summary := crowd_summary(crowds, len(content["annotations"])):
        log_first_n(logging.WARNING, f"{file.json_file}: {summary}", key="message", name=__name__)
    return content, content != original


def coco_records(content: dict, image_root: str) -> list[dict]:
    """What :func:`load_coco_file` returns, from the content of a file without problems."""
    category_ids = sorted((c["id"] for c in content["categories"]), key=id_order)
    classes = {id_: i for i, id_ in enumerate(category_ids)}
    records = {}
    for image in sorted(content["images"], key=lambda image: id_order(image["id"])):
        records[image["id"]] = {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [],
        }
    for annotation in content["annotations"]:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, dict):
            segmentation = compressed_rle(segmentation)
        records[annotation["image_id"]]["annotations"].append(
            {
                "bbox": annotation["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": classes[annotation["category_id"]],
                "iscrowd": annotation["iscrowd"],
                "segmentation": segmentation,
            }
        )
    return list(records.values())


def _write_copy(file: CocoFile, content: dict) -> str:
    """A temporary json with the checked content, removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="rdsnet-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, os.path.basename(file.json_file))
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(content, stream)
    logger.info(f"Evaluation on '{file.name}' uses the checked annotations in {path}")
    return path


def _categories(cfg: CfgNode, name: str) -> dict[int | str, str] | None:
    """{category id: name} of a dataset, sorted by id; None when unknown."""
    for file in coco_files(cfg):
        if file.name == name:
            return coco_categories(file.json_file)
    if name not in DatasetCatalog:
        return None
    metadata = MetadataCatalog.get(name)
    classes = metadata.get("thing_classes")
    if classes is None:
        return None
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    ids = range(len(classes)) if ids is None else sorted(ids, key=ids.get)
    return dict(zip(ids, classes, strict=True))


def _distinct(classes: Sequence[tuple[int | str, str]]) -> list[str]:
    """Distinct names of ``DATASETS.CLASSES``."""
    return distinct_names({id_: label for id_, label in classes})


def _meant(classes: dict[int | str, str]) -> list[tuple[int | str, str]]:
    """Ids and names in order. Of one exporter, ids may be numbers here and text there."""
    numbers = [(id_, whole_number(id_), name) for id_, name in classes.items()]
    return [(id_ if number is None else number, name) for id_, number, name in numbers]


def _listed(classes: dict[int | str, str], most: int = 10) -> str:
    shown = [f"{shown_id(id_)} '{name}'" for id_, name in list(classes.items())[:most]]
    return ", ".join(shown) + (", ..." if len(classes) > most else "")


def _differences(a: tuple[str, dict[int | str, str]], b: tuple[str, dict[int | str, str]]) -> str:
    (name_a, classes_a), (name_b, classes_b) = a, b
    parts = []
    for name, classes, others in ((name_a, classes_a, classes_b), (name_b, classes_b, classes_a)):
        extra = {id_: label for id_, label in classes.items() if id_ not in others}
        if extra:
            parts.append(f"only in '{name}': {_listed(extra)}")
    renamed = [
        f"{shown_id(id_)} is '{label}' and '{classes_b[id_]}'"
        for id_, label in classes_a.items()
        if id_ in classes_b and classes_b[id_] != label
    ]
    if renamed:
        parts.append("other name: " + ", ".join(renamed[:10]))
    return "; ".join(parts)


def _expand(path: str) -> str:
    return os.path.abspath(os.path.expanduser(os.path.expandvars(path)))
