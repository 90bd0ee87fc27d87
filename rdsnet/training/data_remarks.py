"""What ``rdsnet train --data`` says about the data when it begins, for people to think about."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from rdsnet.data.crowds import crowd_summary
from rdsnet.data.equal_images import equal_images, image_paths
from rdsnet.data.findings import counted, printable

Remarks = list[tuple[str, str]]
"""(topic, text) each, as the notes of :class:`rdsnet.training.settings.Settings`."""


def crowd_remarks(json_file: str, content: dict, must_have_objects: bool = True) -> Remarks:
    """Whether most annotations of a checked file are crowds.

    Raises:
        ValueError: all are, though there must be objects.
    """
    annotations = content["annotations"]
    crowds = sum(annotation["iscrowd"] for annotation in annotations)
    summary = crowd_summary(crowds, len(annotations))
    if summary and must_have_objects and crowds == len(annotations):
        raise ValueError(f"{json_file} has no object to learn: {summary}")
    return [("Crowds", f"{json_file}: {summary}")] if summary else []


def shared_image_remarks(train: tuple[dict, str], val: tuple[dict, str], val_file: str) -> Remarks:
    """Whether images are trained on and evaluated on.

    Args:
        train, val: content of a checked file, and its image folder.
        val_file: what the second one is called.
    """
    paths = {(0, id_): path for id_, path in image_paths(*train).items()}
    paths |= {(1, id_): path for id_, path in image_paths(*val).items()}
    shared = set()
    for group in equal_images(paths):
        if any(part == 0 for part, _ in group):
            shared |= {id_ for part, id_ in group if part == 1}
    if not shared:
        return []
    images = val[0]["images"]
    first = next(image["file_name"] for image in images if image["id"] in shared)
    text = (
        f"{len(shared)} of the {counted(len(images), 'image')} of {val_file} are trained on, too, "
        f"such as '{printable(first)}': on them AP says how well they are remembered. Leave them "
        "out of one of the two files."
    )
    return [("Same images", text)]


def equal_image_remarks(equal: Sequence[Sequence[Hashable]], images: int) -> Remarks:
    """How the hold-out of a number of images treats groups of those that are equal."""
    if not equal:
        return []
    count = sum(map(len, equal))
    text = f"{count} images are {counted(len(equal), 'photograph')} (their files are equal); "
    if len(equal[0]) == images:
        text += "there is no other, so that what is held out is trained on, too"
    else:
        text += "each photograph is either trained on or held out"
    return [("Same images", text)]
