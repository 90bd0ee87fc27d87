"""Label, train, correct, again: the model in the box predicts, people correct, the json has it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest

from rdsnet.cli import main
from rdsnet.data.rle import segmentation_rle

DATA = os.environ.get("RDSNET_DATA")
NUCLEI = Path(__file__).resolve().parents[1] / "projects" / "Nuclei" / "nuclei" / "nuclei.pth"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA, reason="set RDSNET_DATA to a folder with nuclei"),
    pytest.mark.skipif(not NUCLEI.is_file(), reason="this checkout is without nuclei.pth"),
]
ADDED = [[4.0, 4.0], [24.0, 5.0], [20.5, 21.25]]


def objects(content):
    """{image: sorted (class, RLE)}."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    images = {image["id"]: image for image in content["images"]}
    found = {image["file_name"]: [] for image in content["images"]}
    for a in content["annotations"]:
        image = images[a["image_id"]]
        rle = segmentation_rle(a["segmentation"], (image["height"], image["width"]))
        found[image["file_name"]].append((names[a["category_id"]], coco_mask.decode(rle).tobytes()))
    return {name: sorted(things) for name, things in found.items()}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Four photographs; the first two, and the fourth, are annotated in train.json."""
    monkeypatch.chdir(tmp_path)
    content = json.loads(Path(DATA, "nuclei", "train.json").read_text())
    counts = {image["id"]: 0 for image in content["images"]}
    for a in content["annotations"]:
        counts[a["image_id"]] += 1
    some = [image for image in content["images"] if 4 <= counts[image["id"]] <= 30][:4]
    Path("photos").mkdir()
    for image in some:
        shutil.copy(Path(DATA, "nuclei", "images", image["file_name"]), "photos")
    content["images"] = [some[0], some[1], some[3]]
    ids = [image["id"] for image in content["images"]]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    Path("train.json").write_text(json.dumps(content))
    return [image["file_name"] for image in some]


def predict(*arguments):
    words = ["predict", "--weights", "nuclei", "--output", "found", "--order", "uncertain"]
    assert main([*words, "--precision", "float32", *arguments]) == 0


def corrected_labelme(names):
    """As a person would: one object removed, one added, one of another class."""
    folder = Path("found", "labelme")
    for name, change in zip(names, ("remove", "add", "rename"), strict=True):
        path = folder / f"{Path(name).stem}.json"
        content = json.loads(path.read_text())
        assert all(shape["description"].startswith("score 0.") for shape in content["shapes"])
        if change == "remove":
            content["shapes"].pop(0)
        elif change == "add":
            shape = {**content["shapes"][0], "points": ADDED, "group_id": None}
            content["shapes"].append(shape)
        else:
            content["shapes"][0]["label"] = "debris"
        path.write_text(json.dumps(content))
    return folder


def shown_in_labelme(folder, names):
    """{image: sorted (class, RLE)}, by labelme's own words: a shape is drawn as its polygon."""
    found = {}
    for name in names:
        content = json.loads((folder / f"{Path(name).stem}.json").read_text())
        size = content["imageHeight"], content["imageWidth"]
        objects_, groups = [], {}
        for n, shape in enumerate(content["shapes"]):
            ring = np.ravel(shape["points"]).tolist()
            key = n if shape["group_id"] is None else ("group", shape["group_id"])
            groups.setdefault((shape["label"], key), []).append(ring)
        for (label, _), rings in groups.items():
            mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(rings, *size)))
            objects_.append((label, mask.tobytes()))
        found[name] = sorted(objects_)
    return found


def check(names, expected, capsys):
    """The json has the corrections, what nobody touched as it was, and can be trained on."""
    before = json.loads(Path("train.json").read_text())
    after = json.loads(Path("train_2.json").read_text())
    found = objects(after)
    assert set(found) == set(names)
    assert {name: found[name] for name in names[:3]} == expected
    assert found[names[3]] == objects(before)[names[3]]
    assert not any("score" in a for a in after["annotations"])
    capsys.readouterr()
    assert main(["check-data", "train_2.json", "photos"]) == 0
    assert "Training would work." in capsys.readouterr().out


def test_the_loop_through_labelme(photos, capsys):
    inputs = [f"photos/{name}" for name in photos[:3]]
    predict("--format", "labelme", "--input", *inputs)
    folder = corrected_labelme(photos[:3])
    expected = shown_in_labelme(folder, photos[:3])
    assert main(["merge", "train.json", str(folder), "--output", "train_2.json"]) == 0
    output = capsys.readouterr().out
    assert "2 replaced, 1 added, 1 unchanged" in output and "debris        0 -> 1  new" in output
    check(photos, expected, capsys)


def test_the_loop_through_coco(photos, capsys):
    inputs = [f"photos/{name}" for name in photos[:3]]
    predict("--format", "coco", "--input", *inputs)
    content = json.loads(Path("found", "images.json").read_text())
    results = json.loads(Path("found", "coco_instances_results.json").read_text())
    annotations = [{"id": n, "iscrowd": 0, **result} for n, result in enumerate(results)]
    for image in content["images"]:  # a tool knows the name alone
        image["file_name"] = Path(image["file_name"]).name
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    first = {i: next(a for a in annotations if a["image_id"] == i) for i in ids.values()}
    annotations.remove(first[ids[photos[0]]])
    ring = np.ravel(ADDED).tolist()
    added = {"image_id": ids[photos[1]], "bbox": [4.0, 4.0, 20.0, 17.25], "id": len(results)}
    annotations.append({**first[ids[photos[1]]], **added, "segmentation": [ring]})
    content["categories"].append({"id": 2, "name": "debris"})
    first[ids[photos[2]]]["category_id"] = 2
    content["annotations"] = annotations
    Path("corrected.json").write_text(json.dumps(content))
    assert main(["merge", "train.json", "corrected.json", "--output", "train_2.json"]) == 0
    check(photos, objects(content), capsys)
