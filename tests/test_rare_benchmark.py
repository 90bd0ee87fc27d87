"""benchmarks/rare: who is in training and who in validation, and the table from made-up results."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "rare" / "run.py"


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("rare_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path):
    """Nuclei as in $RDSNET_DATA: 4 dark and 5 bright images for training, 2 and 1 others, 1 large.

    The files of both parts count images and objects from 1. Image k holds k objects.
    """
    (tmp_path / "images").mkdir()
    for part, kinds in (("train", "ddddbbbbbL"), ("val", "ddb")):
        content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nucleus"}]}
        for number, kind in enumerate(kinds, start=1):
            name, side = f"{part}{number}.png", 400 if kind == "L" else 32
            pixels = np.full((side, side), 200 if kind == "b" else 30, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name)
            content["images"].append(
                {"id": number, "file_name": name, "width": side, "height": side}
            )
            for _ in range(number):
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": number,
                        "category_id": 1,
                        "bbox": [number, 1, 2, 3],
                        "iscrowd": 0,
                    }
                )
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    return tmp_path


def objects(content):
    """{file name: (class, number of objects)}, each of which is where its image's objects are."""
    names = {image["id"]: image["file_name"] for image in content["images"]}
    assert sorted(a["id"] for a in content["annotations"]) == list(
        range(1, len(content["annotations"]) + 1)
    )
    found = {name: [] for name in names.values()}
    for annotation in content["annotations"]:
        name = names[annotation["image_id"]]
        assert name.endswith(f"{annotation['bbox'][0]}.png")
        found[name].append(annotation["category_id"])
    assert all(len(set(classes)) == 1 for classes in found.values())
    return {name: (classes[0], len(classes)) for name, classes in found.items()}


def test_split(run, root):
    train, val = (objects(content) for content in run.split(root, rare=2, seed=1))
    dark = {f"train{k}.png": (1, k) for k in (1, 2, 3, 4)}
    bright = {f"train{k}.png": (2, k) for k in (5, 6, 7, 8, 9)}
    rare = {name: what for name, what in train.items() if what[0] == 2}
    assert len(rare) == 2 and rare.items() <= bright.items()
    assert train == dark | rare
    others = {name: what for name, what in bright.items() if name not in rare}
    assert val == {"val1.png": (1, 1), "val2.png": (1, 2), "val3.png": (2, 3)} | others
    drawn = {tuple(objects(run.split(root, 2, seed)[0])) for seed in range(8)}
    assert len(drawn) > 1  # another seed, other images


def test_table(run):
    def result(stained):
        both = dict(zip(run.CLASSES, (50.0, stained)))
        return {"AP": {"bbox": both, "segm": both}}

    results = {"as often-1": result(2), "more often-1": result(6)}
    results |= {"as often-2": result(4), "more often-2": result(10)}
    args = argparse.Namespace(seeds=[1, 2, 3], rare=3, iterations=600)
    lines = run.table(results, args).splitlines()
    assert "seeds 1, 2;" in lines[2]
    assert lines[-3].endswith("| 50.0 ± 0.0 | 50.0 ± 0.0 | 3.0 ± 1.0 | 3.0 ± 1.0 |")
    assert lines[-1].endswith("| +0.0 ± 0.0 | +0.0 ± 0.0 | +5.0 ± 1.0 | +5.0 ± 1.0 |")
