"""Making a usable COCO file from a broken one, without guessing.

What can be known is corrected (a box from its mask, an image's size where the coordinates prove
it); what cannot is left out (an annotation of an unknown class, an image that cannot be read).
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from rdsnet.data.checks import (
    complete_annotations,
    free_id,
    is_crowd_flag,
    structure_findings,
    usable_annotations,
)
from rdsnet.data.coco_json import write_coco_json
from rdsnet.data.crowds import crowds_as_objects
from rdsnet.data.findings import printable
from rdsnet.data.holes import inner_polygons_as_holes
from rdsnet.data.ids import is_count, is_id, shown_id
from rdsnet.data.image_paths import file_problem
from rdsnet.data.image_sizes import (
    DECLARED_WRONG,
    RESIZED,
    TURNED,
    UNCLEAR,
    Disagreement,
    disagreements,
    scaled,
)
from rdsnet.data.normal_form import READ_AS, normal_form
from rdsnet.data.quality import box_differs_from_mask, repeats, xyxy_boxes
from rdsnet.data.statistics import mask_boxes

# What becomes of images whose size is not that of their file, by kind of disagreement.
_CORRECTED = {
    DECLARED_WRONG: "image sizes corrected",
    RESIZED: "resized images whose coordinates were scaled",
}
_LEFT_OUT = {
    RESIZED: "resized images left out (--scale-coordinates keeps them)",
    TURNED: "turned images left out, whose coordinates may be those of the stored pixels",
    UNCLEAR: "images of another size left out, whose coordinates don't prove which size is right",
}
_NO_SIZE = "images left out, whose 'width' or 'height' is missing or no whole number of pixels"
# So many of the images that are left out are named.
_NAMES_SHOWN = 100


class Done(Counter):
    """What a repair has done: {description: how often}.

    Attributes:
        names: {description: file names} of what people have to know by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, description: str, name: str) -> None:
        self[description] += 1
        self.names[description].append(printable(name))

    def lines(self) -> list[str]:
        """For people; what was not needed is left out."""
        lines = []
        for description, number in (+self).items():
            names = self.names[description]
            more = (
                f", ... and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            )
            shown = ": " + ", ".join(names[:_NAMES_SHOWN]) + more if names else ""
            lines.append(f"  {number:>6} {description}{shown}")
        return lines


def repair_coco(
    content: dict,
    image_root: str | os.PathLike,
    sizes: Mapping[int | str, tuple[int, int] | ValueError],
    *,
    scale_coordinates: bool = False,
    crowds_are_objects: bool = False,
    inner_polygons_are_holes: bool = False,
) -> tuple[dict, Done]:
    """A copy of a COCO file's content that training accepts.

    Args:
        content: as :func:`read_coco_json` returns it; not changed.
        image_root: the folder that ``file_name`` is relative to.
        sizes: height and width of the files, or why they cannot be read, of as many images as have
            been looked at (:func:`rdsnet.data.image_files.read_sizes`).
        scale_coordinates: of images that were resized after annotation
            (:mod:`rdsnet.data.image_sizes`); otherwise these are left out.
        crowds_are_objects: make crowds objects (:mod:`rdsnet.data.crowds`).
        inner_polygons_are_holes: cut polygons out of those that they lie inside
            (:mod:`rdsnet.data.holes`).

    Returns:
        The repaired content and what was done.

    Raises:
        ValueError: if it cannot be repaired: two different categories share an id, there is none,
            or no image remains.
    """
    done = Done()
    content, read_as = normal_form(content)
    for finding in read_as:
        done[f"{finding.kind}: {READ_AS[finding.kind]}"] += 1
    if crowds_are_objects:
        content, done["crowds made objects"] = crowds_as_objects(content)
    categories = _repair_categories(content["categories"], done)
    differing = disagreements(content, sizes)
    corrected = {DECLARED_WRONG, RESIZED} if scale_coordinates else {DECLARED_WRONG}
    images = _repair_images(content["images"], image_root, sizes, differing, corrected, done)
    ids = {image["id"] for image in images}
    annotations = []
    for annotation in content["annotations"]:
        if isinstance(annotation, dict) and is_id(annotation.get("image_id")):
            if annotation["image_id"] in ids:
                size = differing.get(annotation["image_id"])
                if size and size.kind == RESIZED:
                    annotation = scaled(annotation, size.declared, size.actual)
                annotations.append(dict(annotation))
                continue
        done["annotations of images that are not there left out"] += 1
    _renumber(annotations, done)
    repaired = {**content, "categories": categories, "images": images, "annotations": annotations}
    if structure_findings(repaired):
        raise ValueError("the file cannot be repaired: its structure remains wrong")
    _repair_annotations(repaired, done)
    if inner_polygons_are_holes:
        repaired, done["objects with holes written as RLE"] = inner_polygons_as_holes(repaired)
    return repaired, done


def check_target(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Refuse to write a repaired copy over the input, whatever it is called there, or another file.

    Raises:
        ValueError, FileExistsError: the message names the file.
    """
    target = Path(target)
    if target.exists():
        if target.samefile(source):
            raise ValueError(
                f"--fix {target} is the input itself, which is never changed. Choose another name."
            )
        raise FileExistsError(f"--fix {target} exists already. Choose another name or remove it.")


def write_repaired(content: dict, source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Write a json under a new name; see :func:`check_target` for what is refused."""
    check_target(source, target)
    write_coco_json(content, target)


def _repair_categories(categories: list, done: Counter) -> list[dict]:
    kept: dict[int | str, dict] = {}
    for category in categories:
        if not isinstance(category, dict) or not is_id(category.get("id")):
            done["categories without id left out"] += 1
            continue
        if not isinstance(category.get("name"), str):
            category = {**category, "name": f"class {category['id']}"}
            done["categories named by their number"] += 1
        known = kept.setdefault(category["id"], category)
        if known["name"] != category["name"]:
            raise ValueError(
                f"the file cannot be repaired: category {shown_id(category['id'])} is "
                f"'{known['name']}' and '{category['name']}'. Give each its own id."
            )
        if known is not category:
            done["repeated categories left out"] += 1
    if not kept:
        raise ValueError("the file cannot be repaired: it declares no usable category")
    return list(kept.values())


def _repair_images(
    images: list,
    image_root: str | os.PathLike,
    sizes: Mapping[int | str, tuple[int, int] | ValueError],
    differing: Mapping[int | str, Disagreement],
    corrected: Collection[str],
    done: Done,
) -> list[dict]:
    by_id = defaultdict(list)
    for image in images:
        usable = isinstance(image, dict) and is_id(image.get("id"))
        if not usable or not isinstance(image.get("file_name"), str) or not image["file_name"]:
            done["images without id or file name left out"] += 1
        else:
            by_id[image["id"]].append(image)
    kept = []
    for id_, same in by_id.items():
        image, size = same[0], sizes.get(id_)
        if len({other["file_name"] for other in same}) > 1:
            done["images left out whose id stands for several files"] += len(same)
            continue
        done["repeated images left out"] += len(same) - 1
        if file_problem(os.path.join(image_root, image["file_name"])):
            done.add("missing images left out", image["file_name"])
        elif isinstance(size, Exception):
            done.add("unreadable images left out", image["file_name"])
        elif id_ in differing and differing[id_].kind in corrected:
            kept.append({**image, "height": size[0], "width": size[1]})
            done[_CORRECTED[differing[id_].kind]] += 1
        elif not all(is_count(image.get(key)) for key in ("height", "width")):
            done.add(_NO_SIZE, image["file_name"])
        elif id_ in differing:
            done.add(_LEFT_OUT[differing[id_].kind], image["file_name"])
        else:
            kept.append(image)
    if not kept:
        reasons = "\n".join(done.lines())
        folder = os.fspath(image_root)
        hint = f"\nIs {folder} the folder of the images?" if done["missing images left out"] else ""
        raise ValueError(f"the file cannot be repaired: no image remains.\n{reasons}{hint}")
    return kept


def _renumber(annotations: list[dict], done: Counter) -> None:
    """Give annotations without an id of their own a new one, in place."""
    taken: set[int | str] = set()
    free = free_id(annotations)
    for annotation in annotations:
        if not is_id(annotation.get("id")) or annotation["id"] in taken:
            annotation["id"] = free
            free += 1
            done["annotations with a new id"] += 1
        taken.add(annotation["id"])


def _repair_annotations(content: dict, done: Counter) -> None:
    """Correct boxes, leave out what stays unusable and what occurs twice, in place."""
    for annotation in content["annotations"]:
        if not is_crowd_flag(annotation.get("iscrowd", 0)):
            annotation["iscrowd"] = 0
            done["values of 'iscrowd' set to 0"] += 1
    # Judged with the whole image as box: what is usable then has a mask that gives a box.
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    given = {a["id"]: a for a in content["annotations"]}
    whole = [{**a, "bbox": [0, 0, *reversed(sizes[a["image_id"]])]} for a in content["annotations"]]
    usable, _ = usable_annotations({**content, "annotations": whole})
    masks = mask_boxes(usable, [sizes[a["image_id"]] for a in usable])
    boxed = []
    for annotation, mask in zip(usable, masks, strict=True):
        if np.isnan(mask).any():
            continue  # the mask lies outside the image
        original = given[annotation["id"]]
        if annotation["segmentation"] is not original["segmentation"]:
            done["annotations with broken polygons left out"] += 1
        boxed.append({**annotation, "bbox": original.get("bbox")})
    done["unusable annotations left out"] += len(given) - len(boxed)
    _correct_boxes(boxed, masks[~np.isnan(masks).any(1)], sizes, done)
    repeated = {annotation["id"] for annotation in repeats(boxed)}
    done["annotations that repeat another one left out"] += len(repeated)
    kept = [annotation for annotation in boxed if annotation["id"] not in repeated]
    content["annotations"] = complete_annotations(kept, content["images"])


def _correct_boxes(
    annotations: list[dict],
    masks: np.ndarray,
    sizes: Mapping[int | str, tuple[int, int]],
    done: Counter,
) -> None:
    """Boxes that are none, reach beyond the image or don't fit their mask: those of the mask."""
    plain = [[0, 0, 0, 0] if not _is_box(a["bbox"]) else a["bbox"] for a in annotations]
    boxes = xyxy_boxes([{"bbox": box} for box in plain])
    limits = np.array([sizes[a["image_id"]][::-1] * 2 for a in annotations]).reshape(-1, 4)
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool)
    wrong = box_differs_from_mask(boxes, masks) & ~crowd
    wrong |= (
        (boxes[:, 2:] <= boxes[:, :2]).any(1) | (boxes < -1).any(1) | (boxes > limits + 1).any(1)
    )
    for n in np.flatnonzero(wrong):
        x1, y1, x2, y2 = masks[n].tolist()
        annotations[n]["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    done["boxes corrected by their masks"] += int(wrong.sum())


def _is_box(box: object) -> bool:
    numbers = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)
    return numbers and bool(np.isfinite(box).all())
