"""Looking at the image files of a data set: can each be read, and has it the size that is declared?

Every file is decoded completely, as training will: a header says nothing about a file that is cut
off. That takes milliseconds per image, on several threads.
"""

from __future__ import annotations

import os
from collections import Counter

from rdsnet.data.arrays import ArrayFile, kind_of
from rdsnet.data.channels import are_photographs, kinds_of, read_picture
from rdsnet.data.findings import Finding, counted
from rdsnet.data.ids import is_id, shown_id
from rdsnet.data.image_paths import file_problem
from rdsnet.data.image_sizes import Disagreement
from rdsnet.data.images import ImageFile
from rdsnet.data.threads import for_each_file


def read_sizes(
    content: dict, image_root: str | os.PathLike
) -> dict[int | str, tuple[int, int] | ValueError]:
    """Read every image.

    Args:
        content: in normal form (:func:`rdsnet.data.normal_form.normal_form`). Entries without id
            or file name, and images without a file that can be read, are left out.
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


def image_findings(
    content: dict,
    sizes: dict[int | str, tuple[int, int] | ValueError],
    differing: dict[int | str, Disagreement],
) -> list[Finding]:
    """What would stop training: images that cannot be read, or have another size than declared.

    Args:
        content: without structural problems.
        sizes: what :func:`read_sizes` has found.
        differing: what :func:`rdsnet.data.image_sizes.disagreements` makes of it.
    """
    unreadable = [
        Finding("unreadable image", f"image {shown_id(image['id'])}", str(size))
        for image in content["images"]
        if isinstance(size := sizes.get(image["id"]), Exception)
    ]
    return unreadable + [d.finding for d in differing.values()]


def channel_findings(content: dict, image_root: str | os.PathLike) -> list[Finding]:
    """Images with another number of channels than most, where not all are photographs.

    Args:
        content: its images have file names.
        image_root: the folder that ``file_name`` is relative to.
    """
    paths = {i["id"]: os.path.join(image_root, i["file_name"]) for i in content["images"]}
    kinds = kinds_of(list(paths.values()))
    if are_photographs(kinds):
        return []
    counts = Counter(kind.channels for kind in kinds.values())
    usual = max(counts, key=counts.get)
    return [
        Finding(
            "channels",
            f"image {shown_id(image['id'])}",
            f"'{image['file_name']}' has {counted(kind.channels, 'channel')}, most have {usual}",
        )
        for image in content["images"]
        if (kind := kinds.get(paths[image["id"]])) and kind.channels != usual
    ]


def page_findings(content: dict, image_root: str | os.PathLike) -> list[Finding]:
    """Images whose file has several pages, of which training sees the first.

    Args:
        content: its images have files.
        image_root: the folder that ``file_name`` is relative to.
    """
    paths = [os.path.join(image_root, image["file_name"]) for image in content["images"]]
    found = for_each_file(_page_count, paths, "Counting pages")
    return [
        Finding(
            "several pages",
            f"image {shown_id(image['id'])}",
            f"'{image['file_name']}' has {pages} pages",
        )
        for image, pages in zip(content["images"], found, strict=True)
        if pages > 1
    ]


def _page_count(path: str) -> int:
    """1 also for what cannot be read, and where the other pages are previews of the first."""
    try:
        if file_problem(path) is not None:
            return 1
        if not kind_of(path).is_photograph:
            with ArrayFile(path) as file:
                return len(file)
        with ImageFile(path) as file:
            return 1 if file.has_side_images else len(file)
    except (OSError, ValueError):
        return 1


def _size_or_error(path: str) -> tuple[int, int] | ValueError:
    try:
        return read_picture(path).shape[:2]
    except (OSError, ValueError) as error:
        return error if isinstance(error, ValueError) else ValueError(str(error))
