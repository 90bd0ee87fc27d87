"""Which part of an export is trained on, and which is evaluated on."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from rdsnet.data.checks import categories_by_id
from rdsnet.data.coco_json import write_coco_json
from rdsnet.data.formats import Export, read_export


@dataclass
class DataPart:
    """COCO content to train or to evaluate on.

    Attributes:
        name: for messages.
        images: the folder that ``file_name`` is relative to.
        json_file: has this content already; None: it was converted.
        remarks: (topic, text) for people.
    """

    name: str
    content: dict
    images: str
    json_file: str | None = None
    remarks: list[tuple[str, str]] = field(default_factory=list)


def read_parts(
    data: tuple[str, str | None], val: tuple[str, str | None] | None, *, hold_out: bool
) -> tuple[DataPart, DataPart | None]:
    """Read what to train on, and what to evaluate on where it is given.

    Args:
        data, val: annotations of any tool and the folder of their images.
        hold_out: without ``val``, take the part of ``data`` that is for validation.

    Returns:
        Classes of the same name have the same ids in both, unless both are COCO's json.

    Raises:
        FileNotFoundError, ValueError: see :func:`rdsnet.data.formats.read_export`.
    """
    export = read_export(*data)
    train = _part(export, "train")
    if val is None:
        has_own = hold_out and "val" in export.parts and len(export.parts) > 1
        return train, _part(export, "val", with_remarks=False) if has_own else None
    classes = categories_by_id(train.content["categories"], train.name)
    evaluated = _part(read_export(*val, classes=classes), "val")
    if train.json_file is None:
        _take_ids(evaluated, classes)
    return train, evaluated


def evaluated_part(
    data: tuple[str, str | None], classes: list, folder: str | os.PathLike
) -> tuple[str, str]:
    """A json and an image folder to evaluate a model on.

    Args:
        data: annotations of any tool and the folder of their images. Of several parts, the one for
            validation is taken.
        classes: ``DATASETS.CLASSES`` of the model; those of the data get its ids.
        folder: where the json is written if it has to be converted.

    Raises:
        FileNotFoundError, ValueError: see :func:`rdsnet.data.formats.read_export`.
    """
    export = read_export(*data, classes={id_: name for id_, name in classes})
    part = _part(export, "val", "test")
    for _, text in part.remarks:
        print(text)
    if part.json_file:
        return part.json_file, part.images
    path = Path(folder, "data", f"{Path(data[0]).absolute().stem}_evaluated.json")
    write_coco_json(part.content, path)
    return os.path.abspath(path), part.images


def _take_ids(part: DataPart, classes: dict[int | str, str]) -> None:
    """Give categories of a json of COCO the ids of classes of the same names, if all have one."""
    ids = {name: id_ for id_, name in classes.items()}
    own = categories_by_id(part.content["categories"], part.name)
    if own == classes or len(set(own.values())) < len(own) or not set(own.values()) <= ids.keys():
        return
    annotations = [
        {**a, "category_id": ids[own[a["category_id"]]]} if a.get("category_id") in own else a
        for a in part.content["annotations"]
    ]
    categories = [{"id": id_, "name": name} for id_, name in classes.items()]
    part.content = {**part.content, "annotations": annotations, "categories": categories}
    part.json_file = None


def _part(export: Export, *wanted: str, with_remarks: bool = True) -> DataPart:
    content = export.part(*wanted)
    chosen = next(name for name, other in export.parts.items() if other is content)
    name = export.path if len(export.parts) == 1 else f"{export.path} ({chosen})"
    said = with_remarks and not export.is_plain
    remarks = [("Annotations", text) for text in export.sentences()] if said else []
    return DataPart(name, content, export.image_root, export.json_file, remarks)
