"""Which images of a data set are no files that can be read, and why; found without opening them.

Beside files that are missing there are broken links, folders with an image's name, files without
permission, and pipes, which would block whoever reads them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping

from rdsnet.data.file_names import Fit, fitting_files
from rdsnet.data.findings import Finding, printable
from rdsnet.data.ids import shown_id

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def file_problem(path: str) -> str | None:
    """Why a path is no file that can be read, as the end of a sentence about it; None: it is one.

    Links are followed. A file that is there and readable may still not be an image.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if not os.path.islink(path):
            return "does not exist"
        return (
            f"is a link to '{printable(os.readlink(path))}', which does not exist: fetch the files "
            "that it stands for, or mount their folder"
        )
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a link that leads back to itself"
        return f"cannot be opened: {error.strerror}"
    except ValueError:  # a zero byte, or half of a character
        return "cannot be opened: no file can have this name"
    if not stat.S_ISREG(status.st_mode):
        kind = next((text for test, text in _KINDS if test(status.st_mode)), "something else")
        return f"is {kind}, not a file"
    if status.st_size == 0:
        return "is empty (0 bytes)"
    if not os.access(path, os.R_OK):
        return _opening_problem(path)
    return None


def missing_image_findings(content: dict, image_root: str | os.PathLike) -> list[Finding]:
    """Images without a file that can be read; says which file of the folder fits, where one does.

    Args:
        content: without structural problems.
        image_root: the folder that ``file_name`` is relative to.
    """
    root = os.fspath(image_root)
    if not os.path.isdir(root):
        is_file = os.path.isfile(root)
        problem = "is a file, not a folder" if is_file else file_problem(root)
        message = f"the image folder {printable(root)} {problem}"
        return [Finding("image file", f"all {len(content['images'])} images", message)]
    problems = _image_problems(content["images"], root)
    fits = _fits(problems, root)
    findings = []
    for image in content["images"]:
        name = image["file_name"]
        if problem := problems[name]:
            fit = fits.get(name)
            kind = "image file name" if fit and fit.is_certain else "image file"
            message = f"{printable(os.path.join(root, name))} {problem}"
            message += f"; {fit}" if fit else ""
            findings.append(Finding(kind, f"image {shown_id(image['id'])}", message))
    return findings


def _image_problems(images: Iterable[dict], root: str) -> dict[str, str | None]:
    """{``file_name``: :func:`file_problem` of the file} of images."""
    names = dict.fromkeys(image["file_name"] for image in images)
    return {name: file_problem(os.path.join(root, name)) for name in names}


def with_fitting_names(content: dict, image_root: str | os.PathLike) -> tuple[dict, list[dict]]:
    """Give images whose file does not exist the name of the one file that fits.

    Args:
        content: as :func:`rdsnet.data.coco_json.read_coco_json` returns it; not changed.
        image_root: the folder that ``file_name`` is relative to.

    Returns:
        The content with these names, and the images that have a new one.
    """
    root = os.fspath(image_root)
    named = [image for image in content["images"] if _has_name(image)]
    fits = _fits(_image_problems(named, root), root)
    images, renamed = [], []
    for image in content["images"]:
        fit = fits.get(image["file_name"]) if _has_name(image) else None
        if fit and fit.is_certain:
            image = {**image, "file_name": fit.files[0]}
            renamed.append(image)
        images.append(image)
    return {**content, "images": images}, renamed


def _has_name(image: object) -> bool:
    return isinstance(image, dict) and isinstance(image.get("file_name"), str)


def _fits(problems: Mapping[str, str | None], root: str) -> dict[str, Fit]:
    """What the names that do not exist may stand for."""
    missing, taken = [], []
    for name, problem in problems.items():
        is_missing = problem and not os.path.lexists(os.path.join(root, name))
        (missing if is_missing else taken).append(name)
    return fitting_files(missing, taken, root)


def _opening_problem(path: str) -> str | None:
    """For files that the access rights forbid to read: servers may allow it nevertheless."""
    try:
        with open(path, "rb"):
            return None
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
