"""COCO's json: taken as it is, the images beside it, in ``images/`` or in the folder given."""

from __future__ import annotations

import os
from pathlib import Path

from rdsnet.data.coco_json import read_coco_json
from rdsnet.data.file_names import fitting_files
from rdsnet.data.findings import printable
from rdsnet.data.formats.collecting import PARTS, Export, part_of
from rdsnet.data.formats.source import Source
from rdsnet.data.formats.values import objects_in

NAME = "COCO json"
WHAT = "COCO json: 'images', 'annotations' and 'categories', as Roboflow and CVAT export it, too"
_KEYS = {"images", "annotations", "categories"}
# Where images often are, seen from the json: in a folder of one's own for json files, and beside.
_IMAGE_FOLDERS = (".", "images", "..", "../images")
_LOOKED_AT = 50  # images by which a folder is known


def is_mine(source: Source) -> bool:
    content = source.json
    return isinstance(content, dict) and len(_KEYS & content.keys()) >= 2  # what lacks is said


def read(sources: list[Source], given: Source) -> Export:
    """One json per part; nothing in it is changed but the beginnings of ``file_name``.

    Raises:
        ValueError: two files are of one part, or it is not COCO's format.
    """
    parts: dict[str, tuple[Source, Path]] = {}
    for source in sources:
        part = "train"
        if len(sources) > 1:
            part = part_of(source, given, with_name=True)
        if part in parts:
            raise ValueError(
                f"{printable(given.path)} has several COCO files, such as "
                f"{printable(parts[part][0].path)} and {printable(source.path)}. Give one of them."
            )
        parts[part] = source, given.images or _image_folder(source)
    root = os.path.commonpath([folder for _, folder in parts.values()])
    contents = {
        part: _from_root(read_coco_json(parts[part][0].path), os.path.relpath(folder, root))
        for part, (_, folder) in parts.items()
    }
    contents = {part: contents[part] for part in PARTS if part in contents}
    if len(parts) > 1:
        return Export(os.fspath(given.path), NAME, contents, root)
    json_file = given.name if not given.is_folder else os.fspath(sources[0].path)
    return Export(json_file, NAME, contents, given.image_root or root, json_file=json_file)


def _image_folder(source: Source) -> Path:
    """The folder that has most of the images, in doubt that of the json."""
    named = [image.get("file_name") for image in objects_in(source.json.get("images"))]
    names = [name for name in named if isinstance(name, str)][:_LOOKED_AT]
    folders = [source.folder / name for name in (*_IMAGE_FOLDERS, source.path.stem)]
    part = source.path.stem.removeprefix("instances_")
    folders += [source.folder.parent / part, source.folder.parent / "images" / part]
    found = [sum((folder / name).is_file() for name in names) for folder in folders]
    if any(found):
        return Path(os.path.normpath(folders[found.index(max(found))]))
    fits = fitting_files(names, (), os.fspath(source.folder))
    folders_of = [Path(fit.files[0]).parent for fit in fits.values() if fit.is_certain]
    common = os.path.commonpath(folders_of) if folders_of else ""
    return source.folder / common


def _from_root(content: dict, folder: str) -> dict:
    if folder == ".":
        return content
    prefix = folder.replace(os.sep, "/")

    def moved(image: object) -> object:
        if isinstance(image, dict) and isinstance(image.get("file_name"), str):
            return {**image, "file_name": f"{prefix}/{image['file_name']}"}
        return image

    return {**content, "images": [moved(image) for image in content["images"]]}
