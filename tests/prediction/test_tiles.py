"""Which tile an object belongs to."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from rdsnet.ops import CompactMasks
from rdsnet.ops.masks import run_lengths_from_window
from rdsnet.prediction.tiles import Seams, spread_windows, tile_grid


@pytest.mark.parametrize("size", [(1000, 1300), (700, 5000), (129, 128), (1, 1), (2048, 640)])
@pytest.mark.parametrize(
    "side, overlap", [(640, 256), (1024, 256), (512, 0), (385, 256), (700, 128)]
)
def test_cores_cover_every_pixel_once_and_windows_lie_on_the_grid_of_strides(size, side, overlap):
    seen = np.zeros(size, int)
    tiles = tile_grid(size, side, overlap, 128)
    for tile in tiles:
        (x1, y1, x2, y2), (left, top, right, bottom) = tile.core, tile.window
        seen[y1:y2, x1:x2] += 1
        assert left % 128 == top % 128 == 0
        assert right - left <= max(side, overlap + 128) >= bottom - top
        # Around the core half of what neighbours both see, or the end of the image.
        half = overlap // 2
        assert left == max(x1 - half, 0) and bottom == min(y2 + half, size[0])
        assert top == max(y1 - half, 0) and right == min(x2 + half, size[1])
        assert x1 < x2 and y1 < y2
    assert (seen == 1).all()
    # No more of them than it takes.
    fewest = 1
    for length in size:
        if length > max(side, overlap + 128):
            fewest *= -(-(length - overlap) // ((side - overlap) // 128 * 128))
    assert len(tiles) <= fewest


def test_an_image_that_fits_is_one_tile():
    (tile,) = tile_grid((500, 640), 640, 256, 128)
    assert tile.core == tile.window == (0, 0, 640, 500)


@pytest.mark.parametrize("size", [(9000, 12000), (3000, 3100), (400, 9000), (5000, 200)])
@pytest.mark.parametrize("count", [1, 12, 28])
def test_spread_windows_are_of_one_size_inside_the_image_on_the_grid_and_apart(size, count):
    height, width = size
    windows = spread_windows(size, 384, count, 128)
    assert windows == spread_windows(size, 384, count, 128)
    assert count <= len(windows) <= count + max(count, 6)
    for x1, y1, x2, y2 in windows:
        assert 0 <= x1 and x2 <= width and 0 <= y1 and y2 <= height
        assert (x2 - x1, y2 - y1) == (min(384, width), min(384, height))
        assert x1 % 128 == y1 % 128 == 0
    if count > 1:  # in all quarters of the longer side
        axis = int(height > width)
        quarters = {4 * (window[axis] + 192) // max(size) for window in windows}
        assert quarters == {0, 1, 2, 3}


SIZE = (600, 700)


def objects(boxes, scores=None, classes=None):
    """Instances in an image of SIZE whose masks fill their boxes."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    runs, windows = [], []
    for box in boxes.round().long().tolist():
        x1, y1, x2, y2 = box
        bits = torch.ones(y2 - y1, x2 - x1, dtype=torch.bool)
        runs.append(run_lengths_from_window(bits, box, SIZE))
        windows.append(box)
    count = len(boxes)
    windows = torch.tensor(windows, dtype=torch.int64).reshape(-1, 4)
    masks = CompactMasks(
        SIZE,
        windows,
        (windows[:, 2:] - windows[:, :2]).prod(1),
        torch.zeros(count, 0),
        torch.zeros(count, 0),
        torch.cat(runs) if runs else torch.zeros(0, dtype=torch.int64),
        torch.tensor([0, *np.cumsum([len(r) for r in runs])], dtype=torch.int64),
    )
    return Instances(
        SIZE,
        pred_boxes=Boxes(boxes),
        scores=torch.tensor(scores or [0.9] * count),
        pred_classes=torch.tensor(classes or [0] * count, dtype=torch.int64),
        pred_masks=masks,
    )


def seen_by(tile, boxes):
    """Those boxes that lie in what a tile sees."""
    x1, y1, x2, y2 = tile.window
    return [b for b in boxes if b[0] >= x1 and b[1] >= y1 and b[2] <= x2 and b[3] <= y2]


def joined(tiles, found):
    seams = Seams()
    parts = [part for tile, one in zip(tiles, found, strict=True) for part in seams.add(tile, one)]
    return sorted(box for part in parts for box in part.pred_boxes.tensor.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_every_object_is_given_once_wherever_it_lies(seed):
    rng = np.random.default_rng(seed)
    corners = [(x, y) for x in range(0, 660, 45) for y in range(0, 560, 45)]
    boxes = [[x, y, x + w, y + h] for (x, y), (w, h) in zip(corners, rng.integers(9, 40, (999, 2)))]
    boxes = [[float(v) for v in box] for box in boxes]
    tiles = tile_grid(SIZE, 256, 128, 64)
    assert len(tiles) > 12
    found = [objects(seen_by(tile, boxes)) for tile in tiles]
    assert joined(tiles, found) == sorted(boxes)


@pytest.mark.parametrize("jitter", [1e-4, 0.4, 1.5])
def test_two_tiles_that_do_not_agree_on_a_centre_neither_lose_nor_double_the_object(jitter):
    tiles = tile_grid(SIZE, 256, 128, 64)
    rng = np.random.default_rng(3)
    edges = sorted({tile.core[2] for tile in tiles if tile.core[2] < SIZE[1]})
    rows = sorted({tile.core[3] for tile in tiles if tile.core[3] < SIZE[0]})
    # Exactly on the borders of the cores, and on their corners.
    true = [[e - 10, y, e + 10, y + 20] for e in edges for y in (20, 90, *(r - 10 for r in rows))]
    found = []
    for tile in tiles:
        noise = rng.uniform(-jitter, jitter, (len(true), 4))
        seen = seen_by(tile, true)
        boxes = (np.array(seen).reshape(-1, 4) + noise[: len(seen)]).tolist()
        found.append(objects(boxes, scores=rng.uniform(0.5, 1, len(boxes)).tolist()))
    result = joined(tiles, found)
    assert len(result) == len(true)
    distances = np.abs(np.array(result)[:, None] - np.array(true)).max(2)
    assert (distances.min(0) <= jitter + 1e-3).all() and (distances.min(1) <= jitter + 1e-3).all()


def test_an_object_that_one_tile_alone_sees_beside_its_core_is_kept():
    tiles = tile_grid((100, 700), 256, 128, 64)
    first, second = tiles[:2]
    border = first.core[2]
    lone = [border - 8.0, 30.0, border + 9.0, 50.0]  # centre 0.5 px beyond the core of the first
    found = [objects([lone])] + [objects([])] * (len(tiles) - 1)
    for one in found:
        one._image_size = (100, 700)
    assert joined(tiles, found) == [lone]


def test_neighbours_and_other_classes_at_a_border_are_no_doubles():
    tiles = tile_grid(SIZE, 256, 128, 64)
    border = tiles[0].core[2]
    touching = [
        [border - 20.0, 30.0, border + 0.0, 50.0],
        [border + 0.0, 30.0, border + 20.0, 50.0],
    ]
    found = [objects(seen_by(tile, touching)) for tile in tiles]
    assert joined(tiles, found) == touching
    same_place = [[border - 10.0, 30.0, border + 10.0, 50.0]] * 2
    found = [
        objects(seen, classes=[0, 1][: len(seen)])
        for seen in (seen_by(tile, same_place) for tile in tiles)
    ]
    assert joined(tiles, found) == same_place
