"""Looking at the image files of a data set: can each be read, and has it the size that is declared?

Every file is decoded completely, as training will: a header says nothing about a file that is cut
off. That takes milliseconds per image, on several threads.
"""

from __future__ import annotations

import os

from rdsnet.data.checks import is_id
from rdsnet.data.findings import Finding
from rdsnet.data.image_paths import file_problem
from rdsnet.data.mapper import read_image
from rdsnet.data.threads import for_each_file


def read_sizes(
    content: dict, image_root: str | os.PathLike
) -> dict[int, tuple[int, int] | ValueError]:
    """Read every image.

    Args:
        content: as :func:`rdsnet.data.coco_json.read_coco_json` returns it. Entries without id or
            file name, and images whose file does not exist or cannot be read, are left out.
        image_root: the folder that ``file_name`` is relative to.

    Returns:
        Per image id (height, width) as it will be seen, after EXIF rotation, or why it cannot be
        read.
    """
    paths = {}
    for image in content["images"]:
        if isinstance(image, dict) and is_id(image.get("id")):
            path = os.path.join(image_root, str(image.get("file_name")))
            if file_problem(path) is None:
                paths[image["id"]] = path
    found = for_each_file(_size_or_error, paths.values(), "Reading images")
    return dict(zip(paths, found, strict=True))


def image_findings(content: dict, sizes: dict[int, tuple[int, int] | ValueError]) -> list[Finding]:
    """What :func:`read_sizes` has found that would stop training."""
    findings = []
    for image in content["images"]:
        size = sizes.get(image["id"])
        where = f"image {image['id']}"
        if isinstance(size, Exception):
            findings.append(Finding("unreadable image", where, str(size)))
        elif size is not None and size != (image["height"], image["width"]):
            findings.append(
                Finding(
                    "image size",
                    where,
                    f"the json says {image['width']} x {image['height']} pixels, "
                    f"'{image['file_name']}' has {size[1]} x {size[0]}",
                )
            )
    return findings


def _size_or_error(path: str) -> tuple[int, int] | ValueError:
    try:
        return read_image(path, "RGB").shape[:2]
    except (OSError, ValueError) as error:
        return error if isinstance(error, ValueError) else ValueError(str(error))
