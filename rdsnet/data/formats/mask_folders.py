"""Folders of pictures of masks, as people who look at cells have them.

- One label image per photograph: ``images/a.png`` and ``masks/a.png``, or ``a_masks.png`` beside
  ``a.png`` or ``a_img.png`` (Cellpose). Every object has its number.
- One picture per object: ``masks/a/*.png``, or a folder per photograph with ``images/`` and
  ``masks/`` in it (Data Science Bowl 2018).

Folders in ``masks/`` that are not called like a photograph are classes. Each may be divided into
``train/``, ``val/`` and ``test/``, at either end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from rdsnet.data.findings import printable
from rdsnet.data.formats.collecting import Collector, named_part
from rdsnet.data.formats.label_images import ARRAY, label_objects, object_in
from rdsnet.data.formats.source import Source, image_files, subfolders
from rdsnet.data.threads import for_each_file

NAME = "folders of masks"
WHAT = (
    "pictures of masks: masks/ beside images/ with one label image per photograph or one folder "
    "of pictures of single objects, or x_masks.png beside x.png"
)
_PHOTO_FOLDERS = ("images", "image", "imgs", "img", "photos", "raw", "jpegimages")
_MASK_FOLDERS = (
    *("masks", "mask", "labels", "label", "instances", "instance_masks", "gt", "ground_truth"),
    *("annotations", "segmentations", "seg", "label_images"),
)
# Folders below the given one in which they are looked for.
_DEPTH = 2
# Roboflow's list of the classes that pixels have in its semantic masks.
_SEMANTIC = "_classes.csv"
# What names of photographs and of their masks end with.
_PHOTO_ENDS = re.compile(r"[_-](img|image|photo|raw)$", re.IGNORECASE)
_MASK_ENDS = re.compile(
    r"[_-](cp_masks|masks?|labels?|seg|segmentation|gt|instances?|instanceids)$", re.IGNORECASE
)
_NUMBER = re.compile(r"[_-]\d+$")


class Pair(NamedTuple):
    """A photograph and its masks.

    Attributes:
        photo: its file.
        labels: label images, with the class of each.
        objects: pictures of single objects.
        part: "train", "val" or "test".
    """

    photo: Path
    labels: list[tuple[Path, str | None]]
    objects: list[Path]
    part: str


def is_mine(source: Source) -> bool:
    return source.is_folder and next(_places(source), None) is not None


def read(sources: list[Source], given: Source, export: Collector) -> None:
    """
    Raises:
        ValueError: the masks say the class of every pixel, and not the object.
    """
    pairs: list[Pair] = []
    for photos, masks in _places(given):
        if (photos / _SEMANTIC).is_file():
            raise ValueError(
                f"{printable(photos)} has masks of classes, as {_SEMANTIC} says: which pixels "
                "belong to which object is not said. Export it as COCO or YOLO for segmentation."
            )
        pairs += _pairs(photos, masks, given.path, export)
    label_images = [path for pair in pairs for path, _ in pair.labels]
    pictures = [path for pair in pairs for path in pair.objects]
    read = _read_all(label_images, label_objects) | _read_all(pictures, object_in)
    for pair in pairs:
        _add_photo(pair, read, export)
    numbers = {number for path in label_images for number, _ in _objects(read[path])}
    if len(numbers) == 1:
        export.remark(
            f"Every label image has one value ({numbers.pop()}), so that each has one object at "
            "most. If several things lie in it, give each pixel the number of its thing."
        )


# What a picture holds: its size, and per object its number and RLE; or why it cannot be read.
_Masks = tuple[tuple[int, int], list[tuple[int, dict]]] | str


def _read_all(paths: list[Path], read: Callable[[str], _Masks]) -> dict[Path, _Masks]:
    def masks_or_reason(path: str) -> _Masks:
        try:
            return read(path)
        except (OSError, ValueError) as error:
            return str(error)

    found = for_each_file(masks_or_reason, [os.fspath(path) for path in paths], "Reading masks")
    return dict(zip(paths, found, strict=True))


def _objects(masks: _Masks) -> list[tuple[int, dict]]:
    return [] if isinstance(masks, str) else masks[1]


def _add_photo(pair: Pair, read: dict[Path, _Masks], export: Collector) -> None:
    given = [*pair.labels, *((path, None) for path in pair.objects)]
    readable = [(path, label) for path, label in given if not isinstance(read[path], str)]
    for path, _ in given:
        if isinstance(read[path], str):
            export.leave_out("masks that cannot be read", read[path])
    if given and not readable:
        return
    size = read[readable[0][0]][0] if readable else None  # an empty folder: no objects
    photo = export.photo(os.fspath(pair.photo), pair.photo.parent, size, pair.part)
    for path, label in readable:
        if read[path][0] != size:
            export.leave_out("masks of another size than the first", path)
        elif path in pair.objects and not _objects(read[path]):
            export.leave_out("masks without a pixel", path)
        else:
            for _, rle in _objects(read[path]):
                photo.add(label, rle)


# --------------------------------------------------------------------------------------------------
# Which masks belong to which photograph


def _places(source: Source) -> Iterator[tuple[Path, Path]]:
    """Folders of photographs, and of their masks (the same: they lie side by side)."""
    folder = source.path
    # Given as the folder of images, too, it has photographs, which are no masks.
    if source.images not in (None, folder):
        masks = _named(folder, _MASK_FOLDERS) or folder
        if _has_masks(masks):
            yield source.images, masks
        return
    yield from _places_below(folder, _DEPTH)


def _places_below(folder: Path, depth: int) -> Iterator[tuple[Path, Path]]:
    photos, masks = _named(folder, _PHOTO_FOLDERS), _named(folder, _MASK_FOLDERS)
    has_photos = photos is not None or image_files(folder)
    if masks and has_photos and (_has_masks(masks) or _is_of_empty_photo(photos, masks)):
        yield photos or folder, masks
    elif not masks and _side_by_side(folder):
        yield folder, folder
    elif depth:
        for inside in subfolders(folder):
            yield from _places_below(inside, depth - 1)


def _named(folder: Path, names: tuple[str, ...]) -> Path | None:
    by_name = {path.name.lower(): path for path in subfolders(folder)}
    return next((by_name[name] for name in names if name in by_name), None)


def _has_masks(folder: Path) -> bool:
    places = (folder, *subfolders(folder))
    return any(_mask_files(place) for place in places) or any(
        _mask_files(inside) for place in places[1:] for inside in subfolders(place)
    )


def _is_of_empty_photo(photos: Path | None, masks: Path) -> bool:
    """Whether it is a folder for pictures of single objects, and there is none of them."""
    is_empty = masks.name.lower() in ("masks", "mask") and not any(masks.iterdir())
    return is_empty and photos is not None and len(image_files(photos)) == 1


def _mask_files(folder: Path) -> list[Path]:
    """Pictures and arrays, without those in which Cellpose keeps its settings."""
    arrays = [path for path in folder.iterdir() if path.suffix.lower() == ARRAY]
    return sorted([*image_files(folder), *(p for p in arrays if not p.stem.endswith("_seg"))])


def _side_by_side(folder: Path) -> bool:
    files = image_files(folder)
    photos = {_stem(path, _PHOTO_ENDS) for path in files if not _MASK_ENDS.search(path.stem)}
    return any(_stem(path, _MASK_ENDS) in photos for path in files if _MASK_ENDS.search(path.stem))


def _stem(path: Path, ends: re.Pattern) -> str:
    name = path.name if path.is_dir() else path.stem
    return ends.sub("", name)


def _pairs(photos: Path, masks: Path, root: Path, export: Collector) -> Iterator[Pair]:
    """Photographs with their masks; the others are noted."""
    files = _photo_files(photos, is_mixed=photos == masks)
    labels, objects = _masks_by_name(masks, files, is_mixed=photos == masks)
    above = photos.relative_to(root).parts[:-1] if photos.is_relative_to(root) else ()
    own = next(filter(None, map(named_part, reversed(above))), None)
    is_one_photo = len(files) == 1 and not set(files) & {*labels, *objects}
    if is_one_photo and photos.parent == masks.parent != root:  # Data Science Bowl 2018
        objects = {next(iter(files)): _mask_files(masks)}
        labels = {}
    for key, (path, part) in files.items():
        if key in labels or key in objects:
            yield Pair(path, labels.pop(key, []), objects.pop(key, []), part or own or "train")
        else:
            export.leave_out("photographs without masks", path)
    for found in labels.values():
        for path, _ in found:
            export.leave_out("masks without photographs", path)
    for key in objects:
        export.leave_out("folders of masks without photographs", masks / key)


def _photo_files(folder: Path, *, is_mixed: bool) -> dict[str, tuple[Path, str | None]]:
    """{name without ending: file and part}, also of the folder's parts."""
    found: dict[str, tuple[Path, str | None]] = {}
    for place in (folder, *(f for f in subfolders(folder) if named_part(f.name))):
        for path in image_files(place):
            if not (is_mixed and _MASK_ENDS.search(path.stem)):
                part = named_part(place.name) if place != folder else None
                found.setdefault(_stem(path, _PHOTO_ENDS), (path, part))
    return found


def _masks_by_name(
    folder: Path, photos: dict, *, is_mixed: bool
) -> tuple[dict[str, list[tuple[Path, str | None]]], dict[str, list[Path]]]:
    """Label images with their classes, and pictures of single objects, by their photographs."""
    labels: dict[str, list[tuple[Path, str | None]]] = {}
    objects: dict[str, list[Path]] = {}

    def add(place: Path, label: str | None) -> None:
        for path in _mask_files(place):
            if not is_mixed or _MASK_ENDS.search(path.stem):
                key = path.stem if path.stem in photos else _stem(path, _MASK_ENDS)
                labels.setdefault(_stem_of(key, photos), []).append((path, label))

    add(folder, None)
    for inside in () if is_mixed else subfolders(folder):
        key = _stem_of(inside.name, photos)
        if key in photos:
            objects[key] = _mask_files(inside)
        elif named_part(inside.name):
            add(inside, None)
            for deeper in subfolders(inside):
                objects[_stem_of(deeper.name, photos)] = _mask_files(deeper)
        else:
            add(inside, inside.name)
    return labels, objects


def _stem_of(name: str, photos: dict) -> str:
    """The key of the photograph that a mask's name means; "a_2" may be an object of "a"."""
    for key in (name, *(ends.sub("", name) for ends in (_PHOTO_ENDS, _MASK_ENDS, _NUMBER))):
        if key in photos:
            return key
    return name
