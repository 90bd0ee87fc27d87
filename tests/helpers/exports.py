"""Exports of annotation tools, written after their documentation from one scene of known masks.

Names have blanks and umlauts, one photograph has no objects, one object has a hole and two parts.
"""

from __future__ import annotations

import base64
import io
import json
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

CLASSES = ("Käfer", "leaf blade")


class Thing(NamedTuple):
    label: str
    polygon: list[float]
    mask: np.ndarray


class Photo(NamedTuple):
    name: str
    height: int
    width: int
    things: list[Thing]

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0]


def drawn(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    rles = mask_util.frPyObjects(polygons, height, width)
    return mask_util.decode(mask_util.merge(rles)).astype(bool)


def thing(label: str, polygon: list[float], height: int, width: int) -> Thing:
    return Thing(label, polygon, drawn([polygon], height, width))


def ring_with_island(height: int, width: int) -> np.ndarray:
    """A mask with a hole and a second part."""
    mask = np.zeros((height, width), dtype=bool)
    mask[5:25, 30:52] = True
    mask[11:18, 36:45] = False
    mask[30:34, 3:9] = True
    return mask


def scene() -> list[Photo]:
    """Polygons whose corners lie between pixels; masks are those of the polygons."""
    first = [
        thing("Käfer", [10.5, 4.25, 31.75, 6.0, 28.0, 19.5, 9.25, 17.0], 40, 60),
        thing("leaf blade", [35.0, 20.0, 55.5, 22.25, 40.0, 38.5], 40, 60),
        thing("Käfer", [40.0, 2.5, 52.0, 3.0, 47.5, 15.75], 40, 60),
    ]
    second = [thing("leaf blade", [3.0, 3.0, 20.0, 8.0, 12.5, 28.0], 48, 32)]
    return [
        Photo("Käfer 1.png", 40, 60, first),
        Photo("blatt grün.jpg", 48, 32, second),
        Photo("leer.png", 24, 36, []),
    ]


def save_photos(folder: Path, photos: list[Photo]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    for photo in photos:
        pixels = rng.integers(0, 256, (photo.height, photo.width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / photo.name)


def pairs(polygon: list[float]) -> list[list[float]]:
    return [list(point) for point in zip(polygon[::2], polygon[1::2])]


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def yolo_lines(photo: Photo) -> str:
    lines = []
    for thing_ in photo.things:
        values = [
            repr(value / (photo.height if n % 2 else photo.width))
            for n, value in enumerate(thing_.polygon)
        ]
        lines.append(" ".join([str(CLASSES.index(thing_.label)), *values]))
    return "\n".join(lines) + "\n" * bool(lines)


def write_yolo(folder: Path, train: list[Photo], val: list[Photo] = ()) -> Path:
    """As Roboflow writes it: ../train/images for train/images; no label file of an empty image."""
    for part, photos in (("train", train), ("valid", val)):
        save_photos(folder / part / "images", list(photos))
        (folder / part / "labels").mkdir(parents=True)
        for photo in photos:
            if photo.things:
                file = folder / part / "labels" / f"{photo.stem}.txt"
                file.write_text(yolo_lines(photo), encoding="utf-8")
    names = ", ".join(f"'{name}'" for name in CLASSES)
    path = folder / "data.yaml"
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\n"
    path.write_text(f"{text}names: [{names}]\n", encoding="utf-8")
    return path


def png(mask: np.ndarray) -> str:
    """A mask in base 64, as labelme has it."""
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def labelme_shape(label: str, points: list, shape_type: str = "polygon", **more) -> dict:
    keys = {"group_id": None, "description": "", "flags": {}, "mask": None}
    return {"label": label, "points": points, "shape_type": shape_type, **keys, **more}


def labelme_file(photo: Photo, shapes: list[dict], image_path: str | None = None) -> dict:
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path or photo.name,
        "imageData": None,
        "imageHeight": photo.height,
        "imageWidth": photo.width,
    }


def write_labelme(folder: Path, photos: list[Photo]) -> Path:
    save_photos(folder, photos)
    for photo in photos:
        shapes = [labelme_shape(t.label, pairs(t.polygon)) for t in photo.things]
        write_json(folder / f"{photo.stem}.json", labelme_file(photo, shapes))
    return folder


def cvat_mask(mask: np.ndarray) -> str:
    """Attributes of a mask: runs of its own box, row by row, the first one background."""
    rows, columns = np.nonzero(mask)
    top, left = rows.min(), columns.min()
    box = mask[top : rows.max() + 1, left : columns.max() + 1]
    runs = [(value, len(list(group))) for value, group in groupby(box.ravel().tolist())]
    counts = [0] * runs[0][0] + [length for _, length in runs]
    rle = ", ".join(map(str, counts))
    height, width = box.shape
    return f'rle="{rle}" left="{left}" top="{top}" width="{width}" height="{height}"'


def cvat_polygon(label: str, polygon: list[float], more: str = "") -> str:
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in pairs(polygon))
    head = f'<polygon label="{label}" source="manual" occluded="0" points="{points}"'
    return f'{head} z_order="0" {more}></polygon>'


def cvat_xml(images: list[tuple[Photo, str]]) -> str:
    labels = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in CLASSES)
    body = "".join(
        f'<image id="{n}" name="{photo.name}" width="{photo.width}" height="{photo.height}">'
        f"{shapes}</image>"
        for n, (photo, shapes) in enumerate(images)
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task>'
        f"<labels>{labels}</labels></task></meta>{body}</annotations>\n"
    )


def write_cvat(folder: Path, photos: list[Photo]) -> Path:
    save_photos(folder / "images", photos)
    images = [(p, "".join(cvat_polygon(t.label, t.polygon) for t in p.things)) for p in photos]
    path = folder / "annotations.xml"
    path.write_text(cvat_xml(images), encoding="utf-8")
    return path


def via_region(polygon: list[float], label: str | None) -> dict:
    shape = {"name": "polygon", "all_points_x": polygon[::2], "all_points_y": polygon[1::2]}
    return {"shape_attributes": shape, "region_attributes": {"kind": label} if label else {}}


def via_images(photos: list[Photo]) -> dict:
    return {
        f"{photo.name}1234": {
            "filename": photo.name,
            "size": 1234,
            "regions": [via_region(t.polygon, t.label) for t in photo.things],
            "file_attributes": {},
        }
        for photo in photos
    }


def write_via(folder: Path, photos: list[Photo]) -> Path:
    save_photos(folder, photos)
    return write_json(folder / "via_region_data.json", via_images(photos))


def label_studio_region(photo: Photo, kind: str, label: str, value: dict) -> dict:
    return {
        "id": "x1",
        "type": f"{kind}labels",
        "from_name": "label",
        "to_name": "image",
        "original_width": photo.width,
        "original_height": photo.height,
        "image_rotation": 0,
        "value": {**value, f"{kind}labels": [label]},
    }


def percent(photo: Photo, polygon: list[float]) -> list[list[float]]:
    return [[100 * x / photo.width, 100 * y / photo.height] for x, y in pairs(polygon)]


def label_studio_task(photo: Photo, number: int, results: list[dict]) -> dict:
    return {
        "id": number,
        "annotations": [{"id": number, "was_cancelled": False, "result": results}],
        "predictions": [],
        "data": {"image": f"/data/upload/1/0a1b2c3d-{photo.name.replace(' ', '_')}"},
    }


def write_label_studio(folder: Path, photos: list[Photo]) -> Path:
    """The photographs lie there as Label Studio has named them."""
    renamed = [p._replace(name=f"0a1b2c3d-{p.name.replace(' ', '_')}") for p in photos]
    save_photos(folder / "upload", renamed)
    tasks = []
    for number, photo in enumerate(photos, start=1):
        regions = [
            label_studio_region(
                photo, "polygon", t.label, {"points": percent(photo, t.polygon), "closed": True}
            )
            for t in photo.things
        ]
        tasks.append(label_studio_task(photo, number, regions))
    return write_json(folder / "project-1.json", tasks)


def packed(values: np.ndarray) -> list[int]:
    """Numbers of 8 bits as Label Studio packs them; blocks of all its kinds."""
    lengths = (3, 4, 8, 16)
    bits = f"{len(values):032b}{8 - 1:05b}" + "".join(f"{length - 1:04b}" for length in lengths)
    for value, group in groupby(values.tolist()):
        left = len(list(group))
        while left:
            kind = next((k for k in range(4) if left <= 1 << lengths[k]), 3)
            length = min(left, 1 << lengths[kind])
            is_run = length > 2
            bits += f"{int(is_run)}{kind:02b}{length - 1:0{lengths[kind]}b}"
            bits += f"{value:08b}" * (1 if is_run else length)
            left -= length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]


def brush(mask: np.ndarray) -> dict:
    """The value of a brush: four channels, the last one of which counts."""
    channels = np.zeros((*mask.shape, 4), dtype=np.uint8)
    channels[..., 0], channels[..., 3] = 7, mask * 255
    return {"format": "rle", "rle": packed(channels.ravel())}


def feature(geometry: dict, label: str | None, kind: str = "annotation") -> dict:
    properties = {"objectType": kind, "isLocked": False}
    if label:
        properties["classification"] = {"name": label, "color": [200, 0, 0]}
    return {"type": "Feature", "id": "1", "geometry": geometry, "properties": properties}


def closed(polygon: list[float]) -> list[list[float]]:
    points = pairs(polygon)
    return [*points, points[0]]


def write_geojson(folder: Path, photos: list[Photo]) -> Path:
    save_photos(folder, photos)
    for photo in photos:
        features = [
            feature({"type": "Polygon", "coordinates": [closed(t.polygon)]}, t.label)
            for t in photo.things
        ]
        content = {"type": "FeatureCollection", "features": features}
        write_json(folder / f"{photo.stem}.geojson", content)
    return folder


def label_image(photo: Photo, numbers: list[int] | None = None) -> np.ndarray:
    """Every thing with its number, from 1 or as given; later ones lie above."""
    labels = np.zeros((photo.height, photo.width), dtype=np.int64)
    for number, thing_ in zip(numbers or range(1, 100), photo.things):
        labels[thing_.mask] = number
    return labels


def in_palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values.astype(np.uint8)).convert("P")
    image.putdata(values.ravel().tolist())
    image.putpalette([(37 * n) % 256 for n in range(768)])
    return image


def write_voc(folder: Path, photos: list[Photo], val: tuple[str, ...] = ()) -> Path:
    """As VOC has it: places in a palette, 255 for the border of an object."""
    save_photos(folder / "JPEGImages", photos)
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for part, is_val in (("train", False), ("val", True)):
        names = [photo.stem for photo in photos if (photo.name in val) is is_val]
        (lists / f"{part}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    lines += [f"{name}:{64 * n + 10},20,30::" for n, name in enumerate(CLASSES)]
    (folder / "labelmap.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for kind in ("SegmentationObject", "SegmentationClass"):
        (folder / kind).mkdir()
    for photo in photos:
        objects = label_image(photo)
        numbers = [CLASSES.index(t.label) + 1 for t in photo.things]
        classes = label_image(photo, numbers) if numbers else np.zeros_like(objects)
        objects[-1, :5] = classes[-1, :5] = 255
        in_palette(objects).save(folder / "SegmentationObject" / f"{photo.stem}.png")
        in_palette(classes).save(folder / "SegmentationClass" / f"{photo.stem}.png")
    return folder


def write_label_images(folder: Path, photos: list[Photo]) -> Path:
    save_photos(folder / "images", photos)
    (folder / "masks").mkdir()
    for photo in photos:
        labels = label_image(photo).astype(np.uint16)
        Image.fromarray(labels).save(folder / "masks" / f"{photo.stem}.png")
    return folder


def write_object_pictures(folder: Path, photos: list[Photo]) -> Path:
    """As the Data Science Bowl 2018 has it: a folder per photograph."""
    for photo in photos:
        save_photos(folder / photo.stem / "images", [photo])
        masks = folder / photo.stem / "masks"
        masks.mkdir()
        for n, thing_ in enumerate(photo.things):
            Image.fromarray(thing_.mask.astype(np.uint8) * 255).save(masks / f"{n:03}.png")
    return folder
