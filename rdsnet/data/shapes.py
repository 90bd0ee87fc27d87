"""A synthetic data set with exact masks: textured shapes that overlap, for the demo and for tests.

Five classes, each of its own outline and colours, with any texture. Shapes lie on top of each
other and across the border; a mask is what remains visible. A pixel belongs to a shape when its
centre does: column i is at x = i + 0.5.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

CLASSES = ("ellipse", "triangle", "rectangle", "star", "ring")

_MIN_RADIUS = 5.0  # pixels, of the circle around a shape
_MIN_VISIBLE_PIXELS = 20  # fewer are not annotated
_MIN_VISIBLE_SHARE = 0.4  # of a shape's area, after the border and later shapes
_STAR_NOTCH = 0.5  # inner radius / outer radius of a star
_RING_HOLE = 0.55  # inner radius / outer radius of a ring

# Every class has colours of its own, so that a few minutes of training tell the classes apart.
_COLORS = {
    "ellipse": ((239, 71, 75), (247, 110, 64)),
    "triangle": ((252, 191, 73), (240, 214, 120)),
    "rectangle": ((46, 140, 226), (64, 100, 214)),
    "star": ((226, 82, 160), (160, 84, 214)),
    "ring": ((118, 186, 88), (32, 178, 140)),
}
_BACKGROUNDS = np.array(
    [(58, 66, 84), (84, 98, 96), (104, 92, 86), (150, 148, 138), (172, 164, 146), (126, 142, 158)],
    dtype=np.float32,
)


def make_shapes_dataset(
    folder: str | os.PathLike,
    *,
    num_train: int = 400,
    num_val: int = 100,
    size: tuple[int, int] | int = (256, 320),
    seed: int = 0,
    num_shapes: tuple[int, int] = (4, 8),
) -> dict[str, str]:
    """Draw the data set and write it in COCO format.

    Writes ``train.json``, ``val.json`` and the folders of PNG images ``train`` and ``val``. An
    image depends on ``seed``, its split and its number only: the same arguments give the same
    bytes, and more training images leave the first ones as they are.

    Args:
        folder: created if needed; files of the same names are overwritten.
        num_train, num_val: number of images.
        size: (H, W) of the images, or one number for both, in pixels; at least 32.
        seed: of the random generator.
        num_shapes: least and largest number of shapes in an image.

    Returns:
        The paths, absolute: ``train_json``, ``train_images``, ``val_json``, ``val_images``.

    Raises:
        ValueError: for sizes and numbers that make no sense.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 32:
        raise ValueError(f"size must be at least 32 pixels, got {size}")
    if min(num_train, num_val) < 0 or not 0 <= num_shapes[0] <= num_shapes[1]:
        raise ValueError(
            f"numbers of images must not be negative and num_shapes must be (least, largest), got "
            f"num_train={num_train}, num_val={num_val}, num_shapes={num_shapes}"
        )
    folder = os.path.abspath(folder)
    paths = {}
    for split_index, (split, count) in enumerate((("train", num_train), ("val", num_val))):
        image_root = os.path.join(folder, split)
        os.makedirs(image_root, exist_ok=True)
        images, annotations = [], []
        for index in range(count):
            rng = np.random.default_rng([seed, split_index, index])
            scene = draw_scene(rng, (height, width), num_shapes)
            image_id, file_name = index + 1, f"{index + 1:06d}.png"
            path = os.path.join(image_root, file_name)
            Image.fromarray(scene.image).save(path, compress_level=1)
            images.append(
                {"id": image_id, "file_name": file_name, "height": height, "width": width}
            )
            for shape, mask in zip(scene.shapes, scene.masks, strict=True):
                annotation = {"id": len(annotations) + 1, "image_id": image_id}
                annotations.append({**annotation, **_coco_annotation(shape, mask)})
        content = {
            "info": {"description": f"rdsnet's synthetic shapes, {split}, seed {seed}"},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        }
        json_file = os.path.join(folder, f"{split}.json")
        with open(json_file, "w", encoding="utf-8") as stream:
            json.dump(content, stream)
        paths[f"{split}_json"], paths[f"{split}_images"] = json_file, image_root
    return paths


@dataclass(frozen=True)
class Shape:
    """A shape in continuous image coordinates (x to the right, y down), in pixels.

    ``radius`` is that of the circle around it, ``angle`` its rotation in radians, clockwise as
    seen on the screen, and ``aspect`` height / width before the rotation (not of stars and rings).
    """

    kind: str
    x: float
    y: float
    radius: float
    angle: float = 0.0
    aspect: float = 1.0

    def local(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image coordinates to the shape's own, unrotated, centred at 0, in pixels."""
        x, y = x - self.x, y - self.y
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return cos * x + sin * y, cos * y - sin * x

    def window(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of an image of (H, W) = ``size`` that it can touch when it is drawn."""
        reach = 4 + 1.3 * self.radius
        return tuple(
            slice(max(0, math.floor(c - reach)), max(0, min(side, math.ceil(c + reach))))
            for c, side in zip((self.y, self.x), size, strict=True)
        )

    def signed_distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Distance in pixels to the outline, negative inside (of ellipses approximate)."""
        u, v = self.local(x, y)
        r = self.radius
        if self.kind == "ellipse":
            scaled = np.hypot(u, v / self.aspect) / r
            slope = np.hypot(u, v / self.aspect**2) / r**2
            return scaled * (scaled - 1) / np.maximum(slope, 1e-9)
        if self.kind == "ring":
            distance = np.hypot(u, v)
            return np.maximum(distance - r, _RING_HOLE * r - distance)
        if self.kind == "rectangle":
            half_width = r / math.hypot(1, self.aspect)
            over_u, over_v = np.abs(u) - half_width, np.abs(v) - half_width * self.aspect
            outside = np.hypot(np.maximum(over_u, 0), np.maximum(over_v, 0))
            return outside + np.minimum(np.maximum(over_u, over_v), 0)
        return _polygon_distance(self.corners(), u, v)

    def corners(self) -> np.ndarray:
        """Corners (P, 2) of a triangle or star in its own coordinates, one of them upwards."""
        points = {"triangle": 3, "star": 10}[self.kind]
        directions = -math.pi / 2 + 2 * math.pi * np.arange(points) / points
        corners = self.radius * np.stack([np.cos(directions), np.sin(directions)], axis=1)
        if self.kind == "star":
            corners[1::2] *= _STAR_NOTCH
        else:
            corners[:, 1] *= self.aspect
        return corners


@dataclass(frozen=True)
class Scene:
    """An image (H, W, 3) uint8 RGB, its shapes (N) from back to front, and their visible parts,
    (N, H, W) bool."""

    image: np.ndarray
    shapes: list[Shape]
    masks: np.ndarray


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int], num_shapes: tuple[int, int] = (4, 8)
) -> Scene:
    """Draw a random scene of (H, W) = ``size``; shapes with too few visible pixels are not listed.

    Large shapes are drawn first, so that none disappears behind later ones.
    """
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    image = _background(rng, x.astype(np.float32), y.astype(np.float32))
    shapes: list[Shape] = []
    top = np.full(size, -1)  # which shape is seen at a pixel
    visible = np.zeros(0, dtype=np.int64)  # pixels of each shape
    radii = _random_radii(rng, size, num_shapes)
    needed = np.zeros(0)
    for radius in sorted(radii, reverse=True):
        for _ in range(20):  # tries to find a place where it and the others remain visible
            shape = _random_shape(rng, size, radius, shapes)
            window = shape.window(size)
            distance = shape.signed_distance(x[window], y[window])
            mask = distance < 0
            hidden = np.bincount(top[window][mask] + 1, minlength=len(shapes) + 1)[1:]
            needed_of_shape = _MIN_VISIBLE_SHARE * _area(shape)
            if (visible - hidden >= needed).all() and mask.sum() >= needed_of_shape:
                _paint(rng, image[window], shape, distance, x[window], y[window])
                top[window][mask] = len(shapes)
                visible = np.append(visible - hidden, mask.sum())
                needed = np.append(needed, needed_of_shape)
                shapes.append(shape)
                break
    image += 2.5 * rng.standard_normal(image.shape, dtype=np.float32)
    listed = np.flatnonzero(visible >= _MIN_VISIBLE_PIXELS)
    return Scene(
        np.clip(np.rint(image), 0, 255).astype(np.uint8),
        [shapes[i] for i in listed],
        top == listed[:, None, None],
    )


# --------------------------------------------------------------------------------------------------
# Geometry


def _random_radii(
    rng: np.random.Generator, size: tuple[int, int], num_shapes: tuple[int, int]
) -> np.ndarray:
    """Radii from ``_MIN_RADIUS`` to a quarter of the image, more of them large than tiny."""
    count = rng.integers(num_shapes[0], num_shapes[1] + 1)
    return _MIN_RADIUS * (min(size) / 4 / _MIN_RADIUS) ** rng.beta(2.4, 1.2, count)


def _random_shape(
    rng: np.random.Generator, size: tuple[int, int], radius: float, others: list[Shape]
) -> Shape:
    """A shape at the outline of another (now and then) or where there is room in the image."""
    if others and rng.random() < 0.3:
        other, direction = others[rng.integers(len(others))], rng.uniform(0, 2 * math.pi)
        away = other.radius + rng.uniform(-0.5, 0.8) * radius
        x, y = other.x + away * math.cos(direction), other.y + away * math.sin(direction)
    else:
        places = rng.uniform((0, 0), (size[1], size[0]), (3, 2))
        into_others = [
            max([o.radius - math.dist(p, (o.x, o.y)) for o in others] + [0]) for p in places
        ]
        x, y = places[np.argmin(into_others)]
    return Shape(
        kind=str(rng.choice(CLASSES)),
        x=float(x),
        y=float(y),
        radius=float(radius),
        angle=float(rng.uniform(0, 2 * math.pi)),
        aspect=float(rng.uniform(0.5, 1.0)),
    )


def _area(shape: Shape) -> float:
    """Area in square pixels, also of what lies outside the image."""
    r = shape.radius
    if shape.kind == "ellipse":
        return math.pi * r * r * shape.aspect
    if shape.kind == "ring":
        return math.pi * r * r * (1 - _RING_HOLE**2)
    if shape.kind == "rectangle":
        return 4 * r * r * shape.aspect / (1 + shape.aspect**2)
    (x, y), (next_x, next_y) = shape.corners().T, np.roll(shape.corners(), -1, axis=0).T
    return 0.5 * abs(float((x * next_y - next_x * y).sum()))


def _polygon_distance(corners: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to a closed polygon: nearest edge, sign by the even-odd rule."""
    nearest = np.full(u.shape, np.inf)
    inside = np.zeros(u.shape, dtype=bool)
    for (u1, v1), (u2, v2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        du, dv = u2 - u1, v2 - v1
        along = np.clip(((u - u1) * du + (v - v1) * dv) / (du * du + dv * dv), 0, 1)
        nearest = np.minimum(nearest, (u - u1 - along * du) ** 2 + (v - v1 - along * dv) ** 2)
        if v1 != v2:
            crosses = (v1 > v) != (v2 > v)
            inside ^= crosses & (u < u1 + (v - v1) / dv * du)
    return np.where(inside, -1, 1) * np.sqrt(nearest)


def _coco_annotation(shape: Shape, mask: np.ndarray) -> dict:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x1, y1, x2, y2 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "category_id": CLASSES.index(shape.kind) + 1,
        "bbox": [int(x1), int(y1), int(x2 - x1), int(y2 - y1)],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")},
    }


# --------------------------------------------------------------------------------------------------
# Colours. A pattern is a function of coordinates in pixels with values 0..1.


def _paint(
    rng: np.random.Generator,
    image: np.ndarray,
    shape: Shape,
    distance: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
) -> None:
    """Draw a shape with a soft shadow onto a part of the image, in place.

    ``image`` (h, w, 3); ``distance``, ``x`` and ``y`` (h, w): of its pixels' centres.
    """
    reach = 1.5 + 0.07 * shape.radius
    shadow = shape.signed_distance(x - 0.5 * reach, y - 0.8 * reach)
    image *= _as_channel(1 - 0.4 * np.clip(0.5 - shadow / (2 * reach), 0, 1))

    colors = _COLORS[shape.kind]
    color = np.array(colors[rng.integers(len(colors))], dtype=np.float32)
    other = _mixed(color, 255.0 if rng.random() < 0.5 else 25.0, rng.uniform(0.35, 0.65))
    period = float(max(4.0, shape.radius * rng.uniform(0.25, 0.6)))
    u, v = shape.local(x.astype(np.float32), y.astype(np.float32))
    pattern = _as_channel(_random_pattern(rng, period)(u, v))
    fill = color + (other - color) * pattern
    light = 1.06 - 0.12 * np.clip((y - shape.y) / shape.radius, -1, 1)  # from above
    rim = 1 - 0.35 * np.clip(1.5 + distance, 0, 1)
    fill *= _as_channel(light * rim)
    cover = _as_channel(np.clip(0.5 - distance, 0, 1))
    image += cover * (np.clip(fill, 0, 255) - image)


def _background(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    color = _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]
    color = (color + rng.uniform(-12, 12, 3)).astype(np.float32)
    other = _mixed(color, 255.0 if rng.random() < 0.5 else 0.0, rng.uniform(0.08, 0.2))
    angle = float(rng.uniform(0, 2 * math.pi))
    u = math.cos(angle) * x + math.sin(angle) * y
    v = math.cos(angle) * y - math.sin(angle) * x
    pattern = _as_channel(_random_pattern(rng, float(rng.uniform(14, 40)))(u, v))
    clouds = _as_channel(_clouds(rng, x.shape, 48.0))
    return (color + (other - color) * pattern) * (0.85 + 0.3 * clouds)


def _mixed(color: np.ndarray, target: float, share: float) -> np.ndarray:
    return (color * (1 - share) + target * share).astype(np.float32)


def _as_channel(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)[..., None]


def _random_pattern(
    rng: np.random.Generator, period: float
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Stripes, checks, dots, noise or a gradient, with features of about ``period`` pixels."""
    wave = 2 * math.pi / period
    sharp = 0.6 / wave  # edges about as soft as a pixel

    def stripes(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.clip(0.5 + sharp * np.sin(wave * u), 0, 1)

    def checks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.clip(0.5 + 2 * sharp * np.sin(0.8 * wave * u) * np.sin(0.8 * wave * v), 0, 1)

    def dots(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        u, v = ((w / period) % 1 - 0.5 for w in (u, v))
        return np.clip(0.5 + period * (0.28 - np.hypot(u, v)), 0, 1)

    def noise(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return _clouds(rng, u.shape, 0.6 * period)

    def gradient(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.clip(0.5 + 0.2 * u / period, 0, 1)

    patterns = (stripes, checks, dots, noise, gradient)
    return patterns[rng.integers(len(patterns))]


def _clouds(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Smooth noise, (H, W) in 0..1, with cells of about ``cell`` pixels."""
    grid = [max(2, math.ceil(side / cell) + 1) for side in shape]
    coarse = Image.fromarray(rng.random(grid).astype(np.float32))
    smooth = coarse.resize(shape[::-1], Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth), 0, 1)
