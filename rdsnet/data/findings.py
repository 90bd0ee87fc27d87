"""What a check of annotations finds, and how people are told: counts, first offenders, remedies."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rdsnet.data.ids import id_order, shown_id

_SHOWN = 5  # offenders of each kind that a message shows

# What to do about a kind of finding: those of structure and files first, then of annotations.
REMEDIES = {
    "category": "Give every category its own 'id', an integer or text, and a 'name'.",
    "image": "Give every image its own 'id', an integer or text, a 'file_name', and 'height' and "
    "'width' in pixels.",
    "image file": "Give the folder that 'file_name' is relative to (in a config the third entry in "
    "DATASETS.COCO_FILES), or remove these images from the json.",
    "image file name": "One file of the folder fits each: correct 'file_name', or let 'rdsnet "
    "check-data --fix OUT.json' write it.",
    "channels": "A model takes one number of channels: save these like the others, or remove them "
    "from the json.",
    "unreadable image": "Replace these files, or remove the images from the json.",
    "image size": "All masks fit the file, and not the declared size: --fix corrects 'height' and "
    "'width'.",
    "resized image": "If these were resized after annotation, '--fix OUT --scale-coordinates' "
    "scales the coordinates; or use the images that were annotated. --fix alone leaves them out.",
    "turned image": "Use the images that were annotated: without an EXIF orientation if they were "
    "annotated as they are stored. Or correct 'height' and 'width', which are those of the image "
    "as it is shown. --fix leaves these out.",
    "other image": "Use the images that were annotated, or correct 'height' and 'width'. --fix "
    "leaves these out, since the coordinates don't prove which size is right.",
    "annotation": "Give every annotation its own 'id', an integer or text, and the 'image_id' of "
    "an image in this file.",
    "unknown category": "Use the ids that 'categories' declares, or declare the missing ones.",
    "box": "A 'bbox' is [x, y, width, height] in pixels.",
    "no segmentation": "RDSNet learns masks: give every annotation polygons or RLE.",
    "polygon": "A polygon is [x1, y1, x2, y2, x3, y3, ...], and 'segmentation' a list of polygons.",
    "RLE": "RLE is {'size': [height, width], 'counts': ...} of the whole image, column by column.",
    "iscrowd": "'iscrowd' is 0 or 1.",
    "no object": "At least one annotation must be usable and not a crowd (iscrowd 0).",
}


@dataclass(frozen=True)
class Finding:
    """One problem: its kind (a key of ``REMEDIES``), where it is and what is wrong there."""

    kind: str
    where: str
    message: str


def report(findings: Iterable[Finding], json_path: str | os.PathLike) -> str:
    """A message with the number of findings per kind, the first of each and the remedies."""
    findings = list(findings)
    lines = finding_lines(findings, REMEDIES)
    return "\n".join([f"{counted(len(findings), 'problem')} in {os.fspath(json_path)}:", *lines])


def finding_lines(findings: Iterable[Finding], remedies: Mapping[str, str]) -> list[str]:
    """Per kind of finding: how many, what to do about it, and the first ones."""
    by_kind = defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(finding)
    lines = []
    for kind, found in by_kind.items():
        lines.append(f"  {kind}: {len(found)}. {remedies[kind]}")
        lines += [f"    {finding.where}: {finding.message}" for finding in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"    ... and {len(found) - _SHOWN} more")
    return lines


def given_value(entry: dict, key: str) -> str:
    """What an entry has under a key, as a message says it."""
    return f"'{key}' is {shortened(entry[key])}" if key in entry else f"'{key}' is missing"


def shortened(value: object, most: int = 60) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def printable(name: str | os.PathLike) -> str:
    """A file's name as a message shows it: on one line, whatever it has in it.

    Line breaks, control characters and bytes that are no text become escapes such as \\n and \\xe9.
    """

    def shown(character: str) -> str:
        if "\udc80" <= character <= "\udcff":  # how Python holds a byte that is no text
            return f"\\x{ord(character) - 0xDC00:02x}"
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            return character.encode("unicode_escape", "surrogatepass").decode()
        return character

    return "".join(map(shown, os.fspath(name)))


def listed(ids: set[int | str], most: int = 10) -> str:
    """The first of some ids, and how many there are."""
    shown = ", ".join(map(shown_id, sorted(ids, key=id_order)[:most]))
    return f"{shown}, ... ({len(ids)} in all)" if len(ids) > most else shown


def first_of(texts: Iterable[str], most: int = _SHOWN) -> str:
    """The first of some names, and how many there are."""
    texts = [printable(text) for text in texts]
    more = f", ... ({len(texts)} in all)" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with what it counts: "1 image", "2 images"."""
    return f"{number} {one if number == 1 else many or one + 's'}"
