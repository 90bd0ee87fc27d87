"""YOLO for segmentation: ``data.yaml``, ``images/`` and ``labels/``.

A line of a label file is a class number and the points of a polygon, as fractions of the image's
sides. The label file of an image lies in ``labels/`` where the image lies in ``images/``, and has
its name. An image without one has no objects.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rdsnet.data.findings import printable, shortened
from rdsnet.data.formats.collecting import PARTS, Collector, Photo, named_part, size_of_file
from rdsnet.data.formats.outlines import flat
from rdsnet.data.formats.source import Source, image_files, subfolders
from rdsnet.data.formats.values import numbers
from rdsnet.data.threads import for_each_file

NAME = "YOLO"
WHAT = "YOLO for segmentation: data.yaml, or its folder with images/ and labels/"
# What the yaml calls a part.
_PART_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_CLASS_FILES = ("classes.txt", "obj.names")
_BOX_NUMBERS = 4


def is_mine(source: Source) -> bool:
    """A yaml that names images and classes, or a folder without one, with labels beside images."""
    if source.is_folder:
        return not any(_is_data_yaml(Source(path)) for path in _yaml_files(source.path)) and bool(
            _label_folders(source.path)
        )
    return _is_data_yaml(source)


def read(sources: list[Source], given: Source, export: Collector) -> None:
    """
    Raises:
        ValueError: the yaml names folders that are not there, several are given, or there are no
            polygons at all.
    """
    if len(sources) > 1:
        names = ", ".join(printable(source.path) for source in sources[:3])
        raise ValueError(f"There are several YOLO data sets ({names}). Give one of these files.")
    source = sources[0]
    if source.is_folder:
        names, photos = _classes_beside(source.path), _photos_of_folder(source.path)
    else:
        names, photos = _class_names(source), _photos_of_yaml(source)
    export.declare(names.values())
    files = [(part, path) for part in PARTS for path in photos.get(part, ())]
    sizes = for_each_file(size_of_file, [os.fspath(path) for _, path in files], "Reading sizes")
    label_files = [_label_file(path) for _, path in files]
    if files and not any(path.is_file() for path in label_files):
        raise ValueError(
            f"{printable(source.path)}: none of the {len(files)} images has a label file, such as "
            f"{printable(label_files[0])}. Labels lie in labels/ where images lie in images/."
        )
    polygons = 0
    for (part, path), size, label_file in zip(files, sizes, label_files):
        photo = export.photo(
            os.fspath(path), path.parent, size if isinstance(size, tuple) else None, part
        )
        if photo.size and label_file.is_file():
            polygons += _read_labels(label_file, photo, names, export)
    boxes = next((len(w) for what, w in export.left_out.items() if what.startswith("box")), 0)
    if boxes and not polygons:
        raise ValueError(
            f"{printable(source.path)} is YOLO for detection: its {boxes} objects are boxes "
            "without masks. RDSNet learns masks: export it for segmentation (polygons)."
        )


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in (".yaml", ".yml"))


def _is_data_yaml(source: Source) -> bool:
    content = source.yaml
    has_part = isinstance(content, dict) and {"train", "val", "valid", "test"} & content.keys()
    return bool(has_part) and ("names" in content or "nc" in content)


# --------------------------------------------------------------------------------------------------
# Images and classes


def _class_names(source: Source) -> dict[int, str]:
    content = source.yaml
    if "kpt_shape" in content:
        raise ValueError(
            f"{printable(source.path)} is YOLO for poses: its objects are points, without masks."
        )
    names = content.get("names")
    if isinstance(names, dict):
        found = {int(k): str(v) for k, v in names.items() if str(k).isdigit()}
    elif isinstance(names, list):
        found = dict(enumerate(map(str, names)))
    else:
        found = {}
    if not found:
        count = content.get("nc")
        if type(count) is not int or not 0 < count <= 100_000:
            raise ValueError(f"{printable(source.path)} has no 'names' of classes.")
        found = {number: f"class {number}" for number in range(count)}
    return dict(sorted(found.items()))


def _photos_of_yaml(source: Source) -> dict[str, list[Path]]:
    content = source.yaml
    photos: dict[str, list[Path]] = {}
    for part, keys in _PART_KEYS.items():
        given = next((content[key] for key in keys if content.get(key)), None)
        for entry in given if isinstance(given, list) else [given] if given else []:
            place = _place(source, str(entry))
            if place is None and part == "test":  # often named and not exported
                continue
            if place is None:
                raise ValueError(
                    f"{printable(source.path)}: '{part}: {printable(str(entry))}' is not there, "
                    f"neither from {printable(_base(source))} nor beside the file."
                )
            photos.setdefault(part, []).extend(_listed(place) if place.is_file() else _below(place))
    return photos


def _base(source: Source) -> Path:
    base = source.yaml.get("path")
    return source.folder / str(base) if base else source.folder


def _place(source: Source, entry: str) -> Path | None:
    """A folder or list of images; Roboflow writes ../train/images for train/images."""
    entry = entry.replace("\\", "/")
    bases = [source.images] if source.images else []
    bases += [_base(source), source.folder]
    inside = entry
    while inside.startswith(("../", "./")):
        inside = inside.partition("/")[2]
    for name in (entry, inside):
        for base in bases:
            place = Path(os.path.normpath(base / name))
            if place.exists():
                return place
    return None


def _below(folder: Path) -> list[Path]:
    found = image_files(folder)
    for inside in subfolders(folder):
        found += _below(inside)
    return found


def _listed(file: Path) -> list[Path]:
    """The images that a text file lists, a path per line; CVAT writes data/images for images."""
    paths = []
    for line in file.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        if parts := Path(line.strip().replace("\\", "/")).parts:
            places = [file.parent.joinpath(*parts[n:]) for n in range(len(parts))]
            path = next((place for place in places if place.is_file()), places[0])
            paths.append(Path(os.path.normpath(path)))
    return paths


def _label_folders(folder: Path) -> list[Path]:
    """Folders ``labels`` with text files, beside ``images``."""
    found = []
    for place in (folder, *subfolders(folder)):
        labels = place / "labels"
        has_text = labels.is_dir() and any(labels.rglob("*.txt"))
        if has_text and (place / "images").is_dir():
            found.append(labels)
    return found


def _photos_of_folder(folder: Path) -> dict[str, list[Path]]:
    photos: dict[str, list[Path]] = {}
    for labels in _label_folders(folder):
        for path in _below(labels.with_name("images")):
            inside = path.relative_to(folder).parts[:-1]
            part = next((p for p in map(named_part, reversed(inside)) if p), "train")
            photos.setdefault(part, []).append(path)
    return photos


def _classes_beside(folder: Path) -> dict[int, str]:
    """Classes of a folder without data.yaml: a name per line of classes.txt, or else numbers.

    Roboflow's data.yaml lies above ``train/`` and ``valid/``.
    """
    for path in _yaml_files(folder.parent):
        if _is_data_yaml(source := Source(path)):
            return _class_names(source)
    for name in _CLASS_FILES:
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
            return {n: line.strip() for n, line in enumerate(lines) if line.strip()}
    numbers_used = set()
    for labels in _label_folders(folder):
        for path in labels.rglob("*.txt"):
            words = (line.split()[:1] for line in _lines(path))
            numbers_used |= {int(word[0]) for word in words if word and word[0].isdigit()}
    return {number: f"class {number}" for number in sorted(numbers_used)}


# --------------------------------------------------------------------------------------------------
# Labels


def _label_file(image: Path) -> Path:
    parts = list(image.parts)
    if "images" in parts[:-1]:
        place = len(parts) - 2 - parts[-2::-1].index("images")
        parts[place] = "labels"
    elif (image.parent / "labels").is_dir():
        parts.insert(-1, "labels")
    return Path(*parts).with_suffix(".txt")


def _lines(file: Path) -> Iterable[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines()


def _read_labels(file: Path, photo: Photo, names: dict[int, str], export: Collector) -> int:
    """Add the polygons of a label file; returns how many they are."""
    height, width = photo.size
    count = 0
    for number, line in enumerate(_lines(file), start=1):
        words = line.split()
        if not words:
            continue
        where = f"{file}, line {number}"
        class_, *values = numbers(*words) or [None]
        if class_ is None or not class_.is_integer() or len(values) % 2 or len(values) < 2:
            what = "lines that are no polygons"
            export.leave_out(what, f"{where}: {shortened(line)}")
        elif len(values) == _BOX_NUMBERS:
            export.leave_out("boxes without masks", where)
        elif int(class_) not in names:
            what = f"object of class {int(class_)}, which has no name"
            export.leave_out(f"objects of class {int(class_)}, which has no name", where)
        else:
            points: Any = zip(values[::2], values[1::2])
            photo.add(names[int(class_)], [flat((x * width, y * height) for x, y in points)])
            count += 1
    return count
