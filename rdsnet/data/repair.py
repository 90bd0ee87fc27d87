"""Making a usable COCO file from a broken one, without guessing.

What can be known is corrected (an image's size from its file, a box from its mask); what cannot is
left out (an annotation of an unknown class, an image that cannot be read).
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rdsnet.data.checks import complete_annotations, is_id, structure_findings, usable_annotations
from rdsnet.data.image_paths import file_problem
from rdsnet.data.quality import box_differs_from_mask, repeats, xyxy_boxes
from rdsnet.data.statistics import mask_boxes


def repair_coco(
    content: dict,
    image_root: str | os.PathLike,
    sizes: Mapping[int, tuple[int, int] | ValueError],
) -> tuple[dict, Counter]:
    """A copy of a COCO file's content that training accepts.

    Args:
        content: as :func:`read_coco_json` returns it; not changed.
        image_root: the folder that ``file_name`` is relative to.
        sizes: height and width of the files, or why they cannot be read, of as many images as have
            been looked at (:func:`rdsnet.data.image_files.read_sizes`).

    Returns:
        The repaired content and what was done, {description: how often}.

    Raises:
        ValueError: if it cannot be repaired: two different categories share an id, there is none,
            or no image remains.
    """
    done: Counter = Counter()
    categories = _repair_categories(content["categories"], done)
    images = _repair_images(content["images"], image_root, sizes, done)
    ids = {image["id"] for image in images}
    annotations = []
    for annotation in content["annotations"]:
        if isinstance(annotation, dict) and is_id(annotation.get("image_id")):
            if annotation["image_id"] in ids:
                annotations.append(dict(annotation))
                continue
        done["annotations of images that are not there left out"] += 1
    _renumber(annotations, done)
    repaired = {**content, "categories": categories, "images": images, "annotations": annotations}
    if structure_findings(repaired):
        raise ValueError("the file cannot be repaired: its structure remains wrong")
    _repair_annotations(repaired, done)
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
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".unfinished")
    unfinished.write_text(json.dumps(content), encoding="utf-8")
    unfinished.replace(target)


def _repair_categories(categories: list, done: Counter) -> list[dict]:
    kept: dict[int, dict] = {}
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
                f"the file cannot be repaired: category {category['id']} is '{known['name']}' and "
                f"'{category['name']}'. Give each its own id."
            )
        if known is not category:
            done["repeated categories left out"] += 1
    if not kept:
        raise ValueError("the file cannot be repaired: it declares no usable category")
    return list(kept.values())


def _repair_images(
    images: list,
    image_root: str | os.PathLike,
    sizes: Mapping[int, tuple[int, int] | ValueError],
    done: Counter,
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
            done["missing images left out"] += 1
        elif isinstance(size, Exception):
            done["unreadable images left out"] += 1
        elif size is not None and size != (image.get("height"), image.get("width")):
            kept.append({**image, "height": size[0], "width": size[1]})
            done["image sizes corrected"] += 1
        elif not all(is_id(image.get(key)) and image[key] > 0 for key in ("height", "width")):
            done["images without size left out"] += 1
        else:
            kept.append(image)
    if not kept:
        raise ValueError(
            f"the file cannot be repaired: no image remains. Is {os.fspath(image_root)} the folder "
            "of the images?"
        )
    return kept


def _renumber(annotations: list[dict], done: Counter) -> None:
    """Give annotations without an id of their own a new one, in place."""
    taken: set[int] = set()
    free = max((a["id"] for a in annotations if is_id(a.get("id"))), default=0) + 1
    for annotation in annotations:
        if not is_id(annotation.get("id")) or annotation["id"] in taken:
            annotation["id"] = free
            free += 1
            done["annotations with a new id"] += 1
        taken.add(annotation["id"])


def _repair_annotations(content: dict, done: Counter) -> None:
    """Correct boxes, leave out what stays unusable and what occurs twice, in place."""
    for annotation in content["annotations"]:
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, list) and segmentation:
            if all(type(v) in (int, float) for v in segmentation):
                annotation["segmentation"] = [segmentation]
                done["polygons put into a list"] += 1
        if annotation.get("iscrowd", 0) not in (0, 1):
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
    annotations: list[dict], masks: np.ndarray, sizes: Mapping[int, tuple[int, int]], done: Counter
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
