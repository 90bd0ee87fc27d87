"""What readers of all formats have in common: images, objects and classes become COCO's content.

A reader says which photographs there are, by the name that the export has for them, and which
objects they have, by the name of the class. Here their files are found, their sizes read, the
classes numbered alike in all parts (train, val, test), and it is noted what was left out and why.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util
from PIL import Image

from rdsnet.data.channels import read_picture
from rdsnet.data.checks import polygon_problem
from rdsnet.data.findings import counted, printable
from rdsnet.data.formats.source import Source
from rdsnet.data.formats.values import label_in
from rdsnet.data.image_formats import is_numpy, is_tiff, pillow_formats
from rdsnet.data.image_paths import with_fitting_names
from rdsnet.data.images import explained
from rdsnet.data.pixels import ORIENTATION
from rdsnet.data.rle import segmentation_rle
from rdsnet.data.threads import for_each_file

PARTS = ("train", "val", "test")
# What folders and files of a part are called.
_PART_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
_PART_NAMES["test"] = ("test", "testing")
# The class of objects that have none, where no other is known.
UNNAMED = "object"
# Orientations in which width and height are exchanged.
_ON_THEIR_SIDE = range(5, 9)
# Folders in which images are often found, seen from that of the annotations.
_IMAGE_FOLDERS = ("", "images", "..", "../images", "JPEGImages")
_CLASSES_SHOWN = 5


@dataclass
class Photo:
    """An image and its objects.

    Attributes:
        name: as the export has it; a full path where the reader has found the file.
        size: height and width; None: those of the file.
        objects: class (None: it has none) and polygons or RLE.
    """

    name: str
    size: tuple[int, int] | None = None
    objects: list[tuple[str | None, list | dict]] = field(default_factory=list)

    def add(self, label: Any, segmentation: list | dict) -> None:
        self.objects.append((label_in(label), segmentation))


@dataclass
class Export:
    """An export as COCO's content.

    Attributes:
        path: what was given.
        format: what it is, for people.
        parts: {"train", "val" or "test": COCO content}; only "train" where it is not divided.
            All parts have the same categories.
        image_root: the folder that ``file_name`` is relative to, in all parts.
        left_out: {what, and why: where}.
        json_file: a file that has just this content, with the same image folder; None: it was
            converted.
        remarks: what else people should know.
    """

    path: str
    format: str
    parts: dict[str, dict]
    image_root: str
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    json_file: str | None = None
    remarks: Sequence[str] = ()

    def part(self, *names: str) -> dict:
        """The first of these parts that is there, or else the first of all."""
        return self.parts[next((n for n in names if n in self.parts), next(iter(self.parts)))]

    def sentences(self) -> list[str]:
        """What was found, what was left out and why, and what else people should know."""
        counts = [
            ("" if len(self.parts) == 1 else f"{name} ")
            + f"{counted(len(content['images']), 'image')}, "
            + counted(len(content["annotations"]), "object")
            for name, content in self.parts.items()
        ]
        categories = self.part()["categories"]
        names = [str(c.get("name")) for c in categories if isinstance(c, dict)]
        shown = ", ".join(map(printable, names[:_CLASSES_SHOWN]))
        shown += ", ..." * (len(names) > _CLASSES_SHOWN)
        lines = [
            f"{printable(self.path)}: {self.format}, {'; '.join(counts)}; "
            f"{counted(len(names), 'class', 'classes')} ({shown})."
        ]
        return [*lines, *_left_out_sentences(self.left_out), *self.remarks]

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to say: a json in COCO's format, alone and complete."""
        return self.json_file is not None and not self.left_out


class Collector:
    """Takes what a reader finds.

    Args:
        root: the folder of the export.
        images: the folder of the images, if the user named one.
        classes: {category id: name} of what is known already, as of the training data; others get
            ids of their own.
        elsewhere: a folder that is searched for images which are not where they should be.
    """

    def __init__(
        self,
        root: Path,
        images: Path | None,
        classes: Mapping[Any, str] | None = None,
        elsewhere: Path | None = None,
    ) -> None:
        self.root, self.images, self.elsewhere = root, images, elsewhere
        self._known = dict(classes or {})
        self._declared: dict[str, None] = {}
        self._photos: dict[str, list[tuple[Photo, Path]]] = {}
        self.left_out: dict[str, list[str]] = {}
        self.remarks: list[str] = []

    def declare(self, names: Iterable[object]) -> None:
        """Classes of the export in its own order, also those without objects."""
        self._declared |= dict.fromkeys(str(name).strip() for name in names)

    def leave_out(self, what: str, where: str | os.PathLike) -> None:
        """Note what is not taken over, as "many things", and where it was."""
        self.left_out.setdefault(what, []).append(os.fspath(where))

    def remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)

    def photo(
        self, name: str, folder: Path, size: tuple[int, int] | None = None, part: str = "train"
    ) -> Photo:
        """A photograph of the export.

        Args:
            name: as the export has it, relative to the folder or any other.
            folder: of the annotations.
            size: height and width, where the export knows.
            part: see ``PARTS``.
        """
        photo = Photo(name, size)
        self._photos.setdefault(part, []).append((photo, folder))
        return photo

    def has(self, label: str) -> bool:
        """Whether a class is known or declared."""
        return label in self._known.values() or label in self._declared

    def export(self, path: str, format: str) -> Export:
        """All that was taken, in COCO's form; without photographs of unknown size.

        Raises:
            ValueError: there is no image in it.
        """
        photos = [photo for entries in self._photos.values() for photo, _ in entries]
        if not photos:
            text = f"{printable(path)} is {format}, but there is no image in it."
            raise ValueError(" ".join([text, *_left_out_sentences(self.left_out)]))
        self._find_files()
        self._read_sizes(photos)
        root = self._common_root([p for p in photos if p.size])
        classes = self._numbered(photos)
        parts = {
            part: self._content([photo for photo, _ in self._photos[part]], root, classes)
            for part in PARTS
            if part in self._photos
        }
        if not any(content["images"] for content in parts.values()):
            first = next(where[0] for where in self.left_out.values())
            raise ValueError(
                f"{printable(path)} is {format}, but none of its {counted(len(photos), 'image')} "
                f"can be read, such as: {first} Give the folder of the images, too."
            )
        return Export(path, format, parts, root, self.left_out, remarks=self.remarks)

    # ----------------------------------------------------------------------------------------------

    def _find_files(self) -> None:
        """Make the name of every photograph a full path, that of a file where there is one."""
        missing = []
        for entries in self._photos.values():
            for photo, folder in entries:
                places = [self.images] if self.images else [folder / f for f in _IMAGE_FOLDERS]
                paths = [os.path.normpath(place / photo.name) for place in places]
                found = next((path for path in paths if os.path.isfile(path)), None)
                if not found and self.images and os.path.isabs(photo.name):
                    found = photo.name if os.path.isfile(photo.name) else None
                if found:
                    photo.name = found
                else:
                    missing.append(photo)
        root = self.images or self.root
        for folder in (root, self.elsewhere):
            if missing and folder is not None:
                missing = self._find_fitting(missing, folder)
        for photo in missing:
            photo.name = os.path.join(root, photo.name)

    def _find_fitting(self, photos: list[Photo], root: Path) -> list[Photo]:
        """Name the files of photographs, perhaps written as on another machine; returns others."""
        images = [{"id": n, "file_name": photo.name} for n, photo in enumerate(photos)]
        content, _ = with_fitting_names({"images": images}, root)
        missing = []
        for photo, image in zip(photos, content["images"]):
            path = os.path.join(root, image["file_name"])
            if os.path.isfile(path):
                photo.name = path
            else:
                missing.append(photo)
        return missing

    def _read_sizes(self, photos: list[Photo]) -> None:
        unknown = [photo for photo in photos if photo.size is None]
        sizes = for_each_file(size_of_file, [photo.name for photo in unknown], "Reading sizes")
        for photo, size in zip(unknown, sizes):
            if isinstance(size, tuple):
                photo.size = size
            else:
                self.leave_out("images whose size is not known", size)

    def _common_root(self, photos: list[Photo]) -> str:
        folders = {os.path.dirname(photo.name) for photo in photos}
        if self.images is not None:
            folders.add(os.fspath(self.images))
        try:
            return os.path.commonpath(folders) if folders else os.fspath(self.root)
        except ValueError:  # on several drives
            return os.fspath(self.root)

    def _numbered(self, photos: list[Photo]) -> dict[str, Any]:
        """{name: category id}; objects without a class get the only one that there is."""
        used = sorted({label for photo in photos for label, _ in photo.objects if label})
        names = dict.fromkeys([*self._known.values(), *self._declared, *used])
        unnamed = sum(label is None for photo in photos for label, _ in photo.objects)
        if unnamed and len(names) > 1:
            for photo in photos:
                without = sum(label is None for label, _ in photo.objects)
                for _ in range(without):
                    self.leave_out("objects without a class", photo.name)
                photo.objects = [entry for entry in photo.objects if entry[0]]
        elif unnamed:
            only = next(iter(names), UNNAMED)
            names[only] = None
            for photo in photos:
                photo.objects = [(label or only, shape) for label, shape in photo.objects]
            if used or self._known or self._declared:
                self.remark(
                    f"{counted(unnamed, 'object has', 'objects have')} no class, and became "
                    f"'{printable(only)}', the only one."
                )
        classes = {name: id_ for id_, name in self._known.items()}
        free = max((id_ for id_ in self._known if type(id_) is int), default=0) + 1
        for name in names:
            if name not in classes:
                classes[name] = free
                free += 1
        return classes

    def _content(self, photos: list[Photo], root: str, classes: Mapping[str, Any]) -> dict:
        images, annotations = [], []
        for photo in photos:
            if photo.size is None:
                continue
            height, width = photo.size
            file_name = os.path.relpath(photo.name, root).replace(os.sep, "/")
            id_ = len(images) + 1
            images.append({"id": id_, "file_name": file_name, "height": height, "width": width})
            for label, shape in photo.objects:
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": id_,
                    "category_id": classes[label],
                    "iscrowd": 0,
                    "segmentation": shape,
                    **_box_and_area(shape, photo.size),
                }
                annotations.append(annotation)
        categories = [{"id": id_, "name": name} for name, id_ in classes.items()]
        return {"images": images, "annotations": annotations, "categories": categories}


def part_of(source: Source, given: Source, *, with_name: bool) -> str:
    """The part that a file of an export belongs to, by the names of its folders.

    Args:
        source: the file, in what the user gave.
        with_name: a word of the file's own name tells, too ("instances_val2017.json").
    """
    path = source.path.relative_to(given.folder)
    words = re.split(r"[\W_\d]+", path.stem) if with_name else []
    parts = (named_part(word) for word in (*words, *reversed(path.parts[:-1])))
    return next(filter(None, parts), "train")


def named_part(name: str) -> str | None:
    """The part that a folder or file is called after: "val", "Valid" and "val2017" are one."""
    word = re.sub(r"[\W_\d]+", "", name.lower())
    return next((part for part in PARTS if word in _PART_NAMES[part]), None)


def size_of_file(path: str) -> tuple[int, int] | str:
    """Height and width of an image as it is seen, after EXIF rotation, or why it is not known."""
    try:
        with explained(path):
            with open(path, "rb") as stream:
                if not (is_tiff(head := stream.read(8)) or is_numpy(head)):
                    with Image.open(stream, formats=pillow_formats()) as image:
                        width, height = image.size
                        turned = image.getexif().get(ORIENTATION, 1) in _ON_THEIR_SIDE
                        return (width, height) if turned else (height, width)
        return read_picture(path).shape[:2]
    except (OSError, ValueError) as error:
        return str(error)


def _left_out_sentences(left_out: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        f"Left out: {what} ({len(places)}{', such as' if len(places) > 1 else ':'} "
        f"{printable(places[0])})."
        for what, places in left_out.items()
    ]


def _box_and_area(shape: list | dict, size: tuple[int, int]) -> dict:
    """``bbox`` and ``area`` of a segmentation; broken ones get what the checks will name."""
    if isinstance(shape, dict):
        box, area = mask_util.toBbox(shape).tolist(), int(mask_util.area(shape))
        return {"bbox": box, "area": area}
    usable = [polygon for polygon in shape if polygon_problem(polygon) is None]
    numbers = [value for polygon in usable or shape for value in polygon]
    xs, ys = numbers[::2], numbers[1::2]
    if not ys:
        return {"bbox": [0, 0, 0, 0]}
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    if len(usable) < len(shape):
        return {"bbox": box}
    return {"bbox": box, "area": int(mask_util.area(segmentation_rle(usable, size)))}
