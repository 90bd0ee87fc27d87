"""Objects that one channel alone shows, learnt by the command from the files."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import tifffile

from rdsnet.checkpoint.description import read_config
from rdsnet.cli import main

SIDE, CHANNELS, SHOWS = 96, 5, 3
ITERATIONS = 60
SHORT = ("--weights", "nuclei", "--batch-size", "2", "--device", "cpu", "--augment", "none")
SHORT += ("--iterations", str(ITERATIONS), "DATALOADER.NUM_WORKERS", "0", "SEED", "7")
SHORT += ("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "TEST.REPORT", "True")
SHORT += ("MODEL.RDSNET.MBRM.FIT.MAX_ITER", "2", "TEST.EVAL_PERIOD", str(ITERATIONS))


def discs(rng):
    """Some that do not touch: centres (x, y) and radii."""
    found = []
    while len(found) < 5:
        x, y, radius = *rng.uniform(12, SIDE - 12, 2), rng.uniform(6, 11)
        if all(np.hypot(x - a, y - b) > radius + other + 2 for a, b, other in found):
            found.append((x, y, radius))
    return found


def draw(rng, objects):
    """(SIDE, SIDE, CHANNELS) uint16: the objects in one channel, others like them elsewhere."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    image = rng.normal(3000, 300, (SIDE, SIDE, CHANNELS))
    for channel in range(CHANNELS):
        for a, b, radius in objects if channel == SHOWS else discs(rng):
            image[:, :, channel][np.hypot(x - a, y - b) < radius] += 6000
    return image.clip(0, 65535).astype(np.uint16)


def make_set(folder, count, seed):
    """Two data sets of the same images: of all channels, and as photographs of the first three."""
    rng, images, annotations = np.random.default_rng(seed), [], []
    for name in ("all", "photos"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        objects = discs(rng)
        image = draw(rng, objects)
        planes = np.moveaxis(image, -1, 0)
        tifffile.imwrite(folder / f"all/{number}.tif", planes, imagej=True)
        cv2.imwrite(str(folder / f"photos/{number}.png"), (image[:, :, :3] >> 6).astype(np.uint8))
        images.append({"id": number, "file_name": f"{number}.tif", "height": SIDE, "width": SIDE})
        for x, y, radius in objects:
            angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            points = np.stack((x + radius * np.cos(angles), y + radius * np.sin(angles)), axis=1)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
                | {"bbox": [x - radius, y - radius, 2 * radius, 2 * radius]}
                | {"area": np.pi * radius**2, "segmentation": [points.ravel().tolist()]}
            )
    categories = [{"id": 1, "name": "disc"}]
    for name, ending in (("all", "tif"), ("photos", "png")):
        named = [{**image, "file_name": f"{image['id']}.{ending}"} for image in images]
        content = {"images": named, "annotations": annotations, "categories": categories}
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.slow
def test_objects_of_one_channel_are_learnt(tmp_path, capsys):
    make_set(tmp_path / "train", 24, 0)
    make_set(tmp_path / "val", 6, 1)
    ap, losses = {}, {}
    for name in ("all", "photos"):
        out = tmp_path / f"out_{name}"
        words = ["train", "--output", str(out)]
        for part, option in (("train", "--data"), ("val", "--val")):
            folder = tmp_path / part
            words += [option, str(folder / f"{name}.json"), str(folder / name)]
        assert main([*words, *SHORT]) == 0
        said = capsys.readouterr().out
        assert ("Channels    5 (as all files have), of more than 8 bits" in said) == (name == "all")
        rows = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
        losses[name] = [row["total_loss"] for row in rows if "total_loss" in row]
        ap[name] = max(row["segm/AP"] for row in rows if "segm/AP" in row)
    stored = read_config(tmp_path / "out_all" / "model_best.pth")
    assert stored.INPUT.CHANNELS == CHANNELS and len(stored.INPUT.SCALE_RANGES) == CHANNELS
    assert losses["all"][-1] < 0.7 * losses["all"][0]
    assert ap["all"] > ap["photos"] + 10
    assert (tmp_path / "out_all" / "report.html").is_file()

    weights = str(tmp_path / "out_all" / "model_best.pth")
    words = ["predict", "--weights", weights, "--input", str(tmp_path / "val" / "all")]
    words += ["--output", str(tmp_path / "found"), "--format", "png,coco"]
    assert main(words) == 0
    assert len(list((tmp_path / "found" / "overlays").iterdir())) == 6
