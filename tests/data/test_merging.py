"""Corrected annotations come back: which image, which class, and nothing else changes."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import exports
from helpers.exports import Photo, scene, thing

from rdsnet.cli import main
from rdsnet.data.checks import check_coco
from rdsnet.data.formats import read_export
from rdsnet.data.merging import merge_corrected

CLASSES = {5: "Käfer", 9: "leaf blade"}


@pytest.fixture(autouse=True)
def _in_a_folder_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train_json(photos, path="train.json", folder="photos", ids=None):
    """A json of COCO for a scene; ids of images and annotations leave gaps."""
    exports.save_photos(Path(folder), photos)
    by_name = {name: id_ for id_, name in CLASSES.items()}
    images, annotations = [], []
    for n, photo in enumerate(photos):
        id_ = ids[n] if ids else 10 + 7 * n
        size = {"height": photo.height, "width": photo.width}
        images.append({"id": id_, "file_name": photo.name, **size, "note": "mine"})
        for thing_ in photo.things:
            annotations.append(annotation(len(annotations) * 3 + 2, id_, thing_, by_name))
    categories = [{"id": id_, "name": name} for id_, name in CLASSES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return exports.write_json(Path(path), content)


def annotation(id_, image_id, thing_, by_name, **more):
    points = np.reshape(thing_.polygon, (-1, 2))
    low, high = points.min(0).tolist(), points.max(0).tolist()
    box = [*low, high[0] - low[0], high[1] - low[1]]
    category = by_name[thing_.label]
    own = {"id": id_, "image_id": image_id, "category_id": category, "iscrowd": 0, "area": 1}
    return {**own, "bbox": box, "segmentation": [thing_.polygon], **more}


def corrected_scene():
    """The scene with an object removed, one added, one of another and one of a new class; and a
    new photograph."""
    first, second, third = copy.deepcopy(scene())
    first.things.pop(1)
    first.things[0] = first.things[0]._replace(label="leaf blade")
    third.things.append(thing("Wurm", [3.0, 3.0, 20.0, 4.0, 12.0, 18.0], 24, 36))
    new = Photo("neu.png", 30, 30, [thing("Käfer", [2.0, 2.0, 25.0, 3.0, 9.0, 21.0], 30, 30)])
    return [first, third, new], second


def objects(path):
    """{image: sorted (class, polygon)}."""
    content = json.loads(Path(path).read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    found = {image["file_name"]: [] for image in content["images"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    for a in content["annotations"]:
        polygon = tuple(np.round(a["segmentation"][0], 2).tolist())
        found[files[a["image_id"]]].append((names[a["category_id"]], polygon))
    return {name: sorted(things) for name, things in found.items()}


def wanted(photos):
    return {p.name: sorted((t.label, tuple(t.polygon)) for t in p.things) for p in photos}


def photo_of(copy):
    """The photograph that a tool has copied, perhaps with a prefix and without blanks."""
    photos = Path("photos").iterdir()
    return next(p for p in photos if copy.name.endswith((p.name, p.name.replace(" ", "_"))))


WRITERS = [exports.write_labelme, exports.write_cvat, exports.write_label_studio]


@pytest.mark.parametrize("beside", [False, True], ids=["labels alone", "with photos"])
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_the_json_has_exactly_the_corrections(write, beside, capsys, monkeypatch):
    monkeypatch.setattr(exports, "CLASSES", (*exports.CLASSES, "Wurm"))
    train = train_json(scene())
    before = train.read_bytes()
    photos, untouched = corrected_scene()
    write(Path("back"), photos)
    shutil.copy(next(Path("back").rglob("*neu.png")), "photos/neu.png")
    for path in Path("back").rglob("*.*"):
        if path.suffix in (".png", ".jpg"):
            same = photo_of(path)
            shutil.copy(same, path)  # the same bytes
            if not beside:
                path.unlink()
    assert main(["merge", "train.json", "back", "--output", "out/merged.json"]) == 0
    output = capsys.readouterr().out
    assert "2 replaced, 1 added, 1 unchanged" in output
    assert "Wurm             0 -> 1  new" in output and "Objects:  4 -> 5" in output
    result = {
        Path(name).name.removeprefix("0a1b2c3d-"): t
        for name, t in objects("out/merged.json").items()
    }
    assert result == wanted([*photos, untouched])
    content = check_coco("out/merged.json", "photos")
    old = json.loads(before)
    assert content["images"][:3] == old["images"]  # ids, names and whatever else they have
    kept = [a for a in old["annotations"] if a["image_id"] == 17]
    assert all(a in content["annotations"] for a in kept)
    ids = [a["id"] for a in content["annotations"] if a not in kept]
    assert min(ids) > max(a["id"] for a in old["annotations"]) and len(set(ids)) == len(ids)
    assert train.read_bytes() == before
    assert main(["check-data", "out/merged.json", "photos", "--no-images"]) == 0


def coco_back(photos, path="back.json", **more):
    names = sorted({t.label for p in photos for t in p.things} | {"unused"})
    by_name = {name: n for n, name in enumerate(names)}
    images, annotations = [], []
    for n, photo in enumerate(photos):
        images.append({"id": n, "file_name": photo.name, "height": photo.height})
        images[-1]["width"] = photo.width
        for thing_ in photo.things:
            annotations.append(annotation(len(annotations), n, thing_, by_name, **more))
    categories = [{"id": id_, "name": name} for name, id_ in by_name.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return exports.write_json(Path(path), content)


def merged(*files, **options):
    train = read_export("train.json", "photos" if Path("photos").exists() else None)
    corrected = [read_export(file, elsewhere=train.image_root) for file in files]
    return merge_corrected(train, corrected, **options)


def test_coco_ids_of_two_files_never_meet_and_scores_are_dropped():
    train_json(scene(), ids=["a", 3, 2**70])
    photos, _ = corrected_scene()
    exports.save_photos(Path("photos"), [photos[2]])
    coco_back(photos[:1], "one.json", score=0.7, bbox_regressed=[1, 2, 3, 4])
    coco_back(photos[1:], "two.json", score=0.7)
    result = merged("one.json", "two.json")
    for key in ("images", "annotations", "categories"):
        ids = [entry["id"] for entry in result.content[key]]
        assert len(set(ids)) == len(ids)
    assert [image["id"] for image in result.content["images"]] == ["a", 3, 2**70, 2**70 + 1]
    assert [c["name"] for c in result.content["categories"]] == ["Käfer", "leaf blade", "Wurm"]
    assert not any("score" in a or "bbox_regressed" in a for a in result.content["annotations"])
    exports.write_json(Path("merged.json"), result.content)
    assert objects("merged.json") == wanted([*photos, scene()[1]])


def test_an_image_that_loses_all_objects_is_kept_and_named(capsys):
    train_json(scene())
    coco_back([scene()[0]._replace(things=[])])
    assert main(["merge", "train.json", "back.json", "--images", "photos", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "1 image had objects and has none now: Käfer 1.png" in output
    assert "Nothing was written" in output and not Path("out.json").exists()
    assert len(merged("back.json").content["images"]) == 3


def test_a_misspelt_class_is_new_and_a_hint_says_how_to_rename_it(capsys):
    train_json(scene())
    photo = scene()[1]
    coco_back([photo._replace(things=[photo.things[0]._replace(label="Leaf  blades")])])
    words = ["merge", "train.json", "back.json", "--images", "photos", "--dry-run"]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "--rename 'Leaf  blades=leaf blade'" in output and "Leaf  blades" in output
    assert main([*words, "--rename", "Leaf  blades=leaf blade"]) == 0
    assert "new" not in capsys.readouterr().out
    assert main([*words, "--rename", "blade=leaf blade"]) == 2
    assert "no corrected file has the class 'blade'" in capsys.readouterr().err


def test_a_name_that_two_classes_have_is_asked_for():
    path = train_json(scene())
    content = json.loads(path.read_text())
    content["categories"].append({"id": 11, "name": "Käfer"})
    exports.write_json(path, content)
    coco_back(scene()[:1])
    with pytest.raises(ValueError, match="has 2 of this name.*--rename 'Käfer=Käfer .id 5"):
        merged("back.json")
    result = merged("back.json", renamed={"Käfer": "Käfer (id 11)"})
    assert sum(a["category_id"] == 11 for a in result.content["annotations"]) == 2


def test_two_folders_may_have_images_of_one_name():
    photo, other, _ = scene()
    other = other._replace(name="Käfer 1.png")
    exports.save_photos(Path("photos/a"), [photo])
    exports.save_photos(Path("photos/b"), [other])
    train_json([])
    content = json.loads(Path("train.json").read_text())
    for n, (name, p) in enumerate({"a/Käfer 1.png": photo, "b/Käfer 1.png": other}.items()):
        size = {"height": p.height, "width": p.width}
        content["images"].append({"id": n, "file_name": name, **size})
    exports.write_json(Path("train.json"), content)
    coco_back([other._replace(name="b/Käfer 1.png")])
    assert merged("back.json").replaced == ["b/Käfer 1.png"]
    coco_back([other])
    with pytest.raises(ValueError, match="2 files fit, and none better than another"):
        merged("back.json")
    shutil.rmtree("photos")  # the name alone is as unclear
    with pytest.raises(ValueError, match="may be several images of train.json"):
        merged("back.json")


def test_a_copy_under_another_name_is_the_same_image_and_another_image_is_new():
    train_json(scene())
    first, second, _ = scene()
    Path("copies").mkdir()
    shutil.copy("photos/Käfer 1.png", "copies/1a2b3c4d-K.png")
    coco_back([first._replace(name="1a2b3c4d-K.png", things=[])], "copies/back.json")
    assert merged("copies/back.json").replaced == ["Käfer 1.png"]
    exports.save_photos(Path("others"), [first._replace(height=50), second])
    coco_back([first._replace(height=50)], "others/back.json")
    result = merged("others/back.json")
    assert result.added == ["../others/Käfer 1.png"] and not result.replaced
    assert "has other bytes than 'Käfer 1.png'" in result.remarks[0]
    check_coco(exports.write_json(Path("m.json"), result.content), "photos")


def test_what_cannot_be_merged_is_said(capsys):
    train_json(scene())
    first, second, _ = scene()
    coco_back([first], "one.json")
    coco_back([first], "two.json")
    with pytest.raises(ValueError, match="one.json and .* of two.json are one image"):
        merged("one.json", "two.json")
    coco_back([first._replace(height=80, width=120)], "one.json")
    with pytest.raises(ValueError, match="has 120 x 80 px, and in train.json 60 x 40: "):
        merged("one.json")
    coco_back([first._replace(name="gone.png")], "one.json")
    with pytest.raises(FileNotFoundError, match="there is no file .*gone.png.*--images DIR"):
        merged("one.json")
    broken = thing("Käfer", second.things[0].polygon, 48, 32)._replace(polygon=[1.0, 2, 3, 4])
    coco_back([second._replace(things=[broken])], "one.json")
    with pytest.raises(ValueError, match=r"(?s)fewer than three points.*--fix OUT.json"):
        merged("one.json")
    coco_back([second], "one.json")
    for words, message in (
        (["train.json", "one.json"], "give --output OUT.json, or --dry-run"),
        (["train.json", "one.json", "--output", "train.json"], "train.json exists already"),
        (["train.json", "one.json", "--output", "one.json"], "one.json exists already"),
    ):
        before = Path("train.json").read_bytes()
        assert main(["merge", *words]) == 2
        assert message in capsys.readouterr().err
        assert Path("train.json").read_bytes() == before


def test_images_for_validation_stay_apart(capsys):
    exports.write_yolo(Path("yolo"), scene()[:1], scene()[1:])
    train_json(scene()[:1], folder="photos")
    shutil.copy("yolo/train/images/Käfer 1.png", "photos")
    assert main(["merge", "train.json", "yolo/data.yaml", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "only its part for training is merged, not val" in output
    assert "1 replaced, 0 added, 0 unchanged" in output
