"""Looking at the image files of a data set: can each be read, and has it the size that is declared?

Every file is decoded completely, as training will: a header says nothing about a file that is cut
off. That takes milliseconds per image, on several threads.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from rdsnet.data.checks import is_id
from rdsnet.data.findings import Finding
from rdsnet.data.images import Picture, read_image

# Threads that decode images; Pillow lets them run at the same time.
THREADS = min(8, os.cpu_count() or 1)
# A progress bar is shown for what takes longer, seconds.
PROGRESS_AFTER = 2.0


def read_sizes(
    content: dict, image_root: str | os.PathLike
) -> dict[int, tuple[int, int] | ValueError]:
    """Read every image.

    Args:
        content: as :func:`rdsnet.data.coco_json.read_coco_json` returns it. Entries without id or
            file name, and images whose file does not exist, are left out.
        image_root: the folder that ``file_name`` is relative to.

    Returns:
        Per image id (height, width) as it will be seen, after EXIF rotation, or why it cannot be
        read.
    """
    paths = {}
    for image in content["images"]:
        if isinstance(image, dict) and is_id(image.get("id")):
            path = os.path.join(image_root, str(image.get("file_name")))
            if os.path.isfile(path):
                paths[image["id"]] = path
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(_size_or_error, paths.values())
        progress = tqdm(
            results,
            total=len(paths),
            desc="Reading images",
            unit="image",
            delay=PROGRESS_AFTER,
            disable=None,
            leave=False,
        )
        return dict(zip(paths, progress, strict=True))


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


def page_findings(
    content: dict,
    image_root: str | os.PathLike,
    sizes: dict[int, tuple[int, int] | ValueError],
) -> list[Finding]:
    """Files with several pages, of which training sees the first, among those that were read."""
    findings = []
    for image in content["images"]:
        if isinstance(sizes.get(image["id"]), tuple):
            with Picture(os.path.join(image_root, str(image["file_name"]))) as picture:
                pages = 1 if picture.has_side_pictures else len(picture)
            if pages > 1:
                message = f"'{image['file_name']}' has {pages} pages"
                findings.append(Finding("several pages", f"image {image['id']}", message))
    return findings


def _size_or_error(path: str) -> tuple[int, int] | ValueError:
    try:
        return read_image(path, "RGB").shape[:2]
    except (OSError, ValueError) as error:
        return error if isinstance(error, ValueError) else ValueError(str(error))
