"""Pascal VOC: objects in ``SegmentationObject``, their classes in ``SegmentationClass``.

Both are pictures of numbers (places in a palette, as VOC has them) or of colours (as CVAT may write
them, with ``labelmap.txt``). 255, or VOC's colour of it, is the border that belongs to nothing.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util

from rdsnet.data.findings import printable
from rdsnet.data.formats.collecting import Collector, named_part
from rdsnet.data.formats.label_images import objects_of, read_labels
from rdsnet.data.formats.source import Source, image_files, subfolders
from rdsnet.data.threads import for_each_file

NAME = "Pascal VOC"
WHAT = "Pascal VOC: a folder with SegmentationObject, SegmentationClass and JPEGImages"
_OBJECTS, _CLASSES, _IMAGES = "SegmentationObject", "SegmentationClass", "JPEGImages"
_BORDER, _BORDER_COLOUR = 255, 0xE0E0C0
_VOC_CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
).split()


def is_mine(source: Source) -> bool:
    return source.is_folder and _root(source.path) is not None


def read(sources: list[Source], given: Source, export: Collector) -> None:
    """
    Raises:
        ValueError: it has classes of pixels and boxes, but no objects.
    """
    root = _root(given.path)
    if not (root / _OBJECTS).is_dir():
        raise ValueError(
            f"{printable(root)} is Pascal VOC without a folder {_OBJECTS}: which pixels belong to "
            "which object is not said. Export it with masks of objects."
        )
    names = _class_names(root, export)
    parts = _parts(root)
    photos = {path.stem: path for path in image_files(given.images or root / _IMAGES)}
    found = []
    for path in image_files(root / _OBJECTS):
        if path.stem in photos:
            found.append(path)
        else:
            export.leave_out("masks without images", f"{_OBJECTS}/{path.name}")
    read = partial(_objects, root=root, names=names)
    objects_of_all = for_each_file(read, [os.fspath(path) for path in found], "Reading masks")
    for path, objects in zip(found, objects_of_all, strict=True):
        if isinstance(objects, str):
            export.leave_out("images whose masks cannot be used", objects)
            continue
        size, things = objects
        part = parts.get(path.stem, "train")
        photo = export.photo(os.fspath(photos[path.stem]), root, size, part)
        for label, rle in things:
            photo.add(label, rle)


def _objects(
    path: str, root: Path, names: dict[int, str]
) -> tuple[tuple[int, int], list[tuple[str | None, dict]]] | str:
    """Size of an image, and class and RLE of its objects; or why there are none."""
    try:
        objects, classes = read_labels(path), _class_picture(root, Path(path), names)
    except (OSError, ValueError) as error:
        return str(error)
    if classes is not None and classes.shape != objects.shape:
        return f"{path}: its two masks differ in size"
    found = []
    for number, rle in objects_of(objects):
        label = _class_of(rle, classes, names)
        if label is not None or number not in (_BORDER, _BORDER_COLOUR):
            found.append((label, rle))
    return objects.shape, found


def _root(folder: Path) -> Path | None:
    """The folder itself, or the one inside VOCdevkit."""
    for place in (folder, *subfolders(folder), *subfolders(folder / "VOCdevkit")):
        if (place / _OBJECTS).is_dir() or (place / _CLASSES).is_dir():
            return place
    return None


def _class_names(root: Path, export: Collector) -> dict[int, str]:
    """Names by number and by colour."""
    file = root / "labelmap.txt"
    if not file.is_file() and (root / "class_names.txt").is_file():  # of labelme's converter
        text = (root / "class_names.txt").read_text(encoding="utf-8", errors="replace")
        names = dict(enumerate(line.strip() for line in text.splitlines() if line.strip()))
        export.declare(list(names.values())[1:])
        return names
    if not file.is_file():
        return dict(enumerate(_VOC_CLASSES))
    names: dict[int, str] = {}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(line for line in lines if line.strip() and line[0] != "#"):
        name, _, rest = line.partition(":")
        names[number] = name
        colour = rest.partition(":")[0].split(",")
        if len(colour) == 3 and all(value.strip().isdigit() for value in colour):
            red, green, blue = map(int, colour)
            names[(red << 16) + (green << 8) + blue] = name
    export.declare(name for name in names.values() if name != "background")
    return names


def _parts(root: Path) -> dict[str, str]:
    """{name of an image: part} by the lists in ImageSets/Segmentation."""
    parts: dict[str, str] = {}
    for file in sorted((root / "ImageSets" / "Segmentation").glob("*.txt")):
        part = named_part(file.stem)
        if part:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            parts |= {line.strip(): part for line in lines if line.strip()}
    return parts


def _class_picture(root: Path, objects: Path, names: dict[int, str]) -> np.ndarray | None:
    """Classes by their colours where all of these have a name, else by their numbers."""
    path = next(iter((root / _CLASSES).glob(f"{_escaped(objects.stem)}.*")), None)
    if path is None:
        return None
    colours = read_labels(path, palette_colours=True)
    if set(np.unique(colours).tolist()) <= {*names, 0, _BORDER, _BORDER_COLOUR}:
        return colours
    return read_labels(path)


def _escaped(stem: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in stem)


def _class_of(rle: dict, classes: np.ndarray | None, names: dict[int, str]) -> str | None:
    """The class of most of an object's pixels."""
    if classes is None:
        return None
    inside = classes[mask_util.decode(rle).astype(bool)]
    inside = inside[(inside != 0) & (inside != _BORDER) & (inside != _BORDER_COLOUR)]
    if not len(inside):
        return None
    values, counts = np.unique(inside, return_counts=True)
    number = int(values[counts.argmax()])
    return names.get(number, f"class {number}")
