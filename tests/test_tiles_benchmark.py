"""The benchmark of tiles: what it evaluates is what was found."""

import os
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import Boxes, Instances
from helpers.blobs import compact

NUCLEI = Path(os.environ.get("RDSNET_DATA", "nowhere")) / "nuclei"
pytestmark = pytest.mark.skipif(not NUCLEI.is_dir(), reason="RDSNET_DATA has no nuclei/")


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks" / "tiles")
    import run

    yield run
    sys.modules.pop("run")


def truth_as_found(mosaic):
    """Instances in the mosaic whose masks are the truth."""
    windows, crops = [], []
    for annotation in mosaic.annotations:
        x, y = mosaic.corners[annotation["image_id"]]
        mask = coco_mask.decode(annotation["segmentation"]) > 0
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        y1, y2, x1, x2 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        windows.append((int(x + x1), int(y + y1), int(x + x2), int(y + y2)))
        crops.append(mask[y1:y2, x1:x2])
    masks = compact(windows, crops, mosaic.size[::-1])
    boxes = Boxes(masks.windows.float())
    found = Instances(mosaic.size[::-1], pred_boxes=boxes, pred_masks=masks)
    found.scores = torch.linspace(0.9, 0.6, len(windows))
    return found


@pytest.mark.parametrize("gap, alike", [(0, False), (16, True)])
def test_the_truth_has_an_ap_of_100_and_no_doubles(run, tmp_path, gap, alike):
    mosaic = run.make_mosaic(tmp_path / "mosaic.npy", (840, 560), gap, alike)
    assert mosaic.size == (3 * (256 + gap), 2 * (256 + gap)) and len(mosaic.corners) == 6
    found = truth_as_found(mosaic)
    for chosen in (np.arange(6), np.array([1, 4])):
        in_pieces = mosaic.in_pieces(found, chosen)
        assert {one["image_id"] for one in in_pieces} <= set(chosen.tolist())
        assert mosaic.aps(in_pieces, chosen) == pytest.approx((100, 100))
    assert run.doubles(found) == 0
    assert run.doubles(Instances.cat([found, found[:7]])) == 7
    pixels = np.load(tmp_path / "mosaic.npy", mmap_mode="r")
    brightness = [pixels[y : y + 256, x : x + 256].mean() for x, y in mosaic.corners]
    assert len(set(brightness)) == 6
    assert not alike or brightness == sorted(brightness)


def test_what_is_found_on_cut_nuclei_counts_in_one_of_two(run, tmp_path):
    mosaic = run.make_mosaic(tmp_path / "mosaic.npy", (512, 256), 0, False)
    chosen = np.arange(2)
    whole = [n for n, one in enumerate(mosaic.annotations) if not one["is_cut"]]
    assert 0 < len(whole) < len(mosaic.annotations)
    found = truth_as_found(mosaic)
    of_all, of_whole = mosaic.aps(mosaic.in_pieces(found[torch.tensor(whole)], chosen), chosen)
    assert of_all < 95 and of_whole == pytest.approx(100)
