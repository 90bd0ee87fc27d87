"""rdsnet check-data: what is found, what --fix does about it, and the exit status."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.counting import assert_work_is_linear
from PIL import Image

from rdsnet.cli import main
from rdsnet.data.checks import check_coco
from rdsnet.data.quality import quality_findings
from rdsnet.data.statistics import data_statistics, mask_boxes
from rdsnet.reports.data_check import check_data

HEIGHT, WIDTH = 40, 60


@pytest.fixture
def run(coco, tmp_path, monkeypatch, capsys):
    """Write the (changed) json and check it; gives exit status and output."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        coco.write()
        capsys.readouterr()
        status = main(["check-data", coco.json_file, coco.image_root, *arguments])
        output = capsys.readouterr()
        return status, output.out + output.err

    return call


def kinds(findings):
    return sorted({finding.kind for finding in findings})


def test_good_data_passes_and_is_drawn(run, coco, tmp_path):
    status, output = run()
    assert status == 0 and "Training would work." in output
    assert "5 images, 8 annotations, 2 categories" in output
    assert "cat 4, dog 3" in output and "1 region" in output  # the crowd is no object
    sheet = cv2.imread(str(tmp_path / "output" / "check-data" / "data.png"))
    # Four images have objects: four cells of 480 px, each with colours that noise has not.
    assert sheet.shape[1] > 4 * 480


def test_what_training_will_see_is_drawn(run, coco, tmp_path):
    status, output = run("--show-augmentations", "seen.png", "--config", "small")
    assert status == 0 and 'seen.png: left and right exchanged ("light")' in output
    seen = cv2.imread(str(tmp_path / "seen.png"))
    # Four images, a row of five variants each.
    assert seen.shape[1] > 5 * 320 and seen.shape[0] > 4 * 200
    _, output = run("--show-augmentations", "strong.png", "--augment", "strong", "--no-images")
    assert 'strong.png: "strong", as asked for' in output
    assert (cv2.imread(str(tmp_path / "strong.png")).shape != seen.shape) or (
        cv2.imread(str(tmp_path / "strong.png")) != seen
    ).any()
    run("--show-augmentations", "again.png", "--config", "small")
    assert (cv2.imread(str(tmp_path / "again.png")) == seen).all()


def test_no_variants_of_data_that_cannot_be_trained_on(run, coco, tmp_path):
    break_category(coco)
    status, output = run("--show-augmentations", "seen.png")
    assert status == 1 and "No picture of augmentations" in output
    assert not (tmp_path / "seen.png").exists()
    status, output = run("--augment", "strong")
    assert status == 2 and "--show-augmentations PNG" in output


def break_category(coco):
    coco.annotation(11)["category_id"] = 77


def break_image_id(coco):
    coco.annotation(11)["image_id"] = 77


def repeat_id(coco):
    coco.annotation(12)["id"] = 11


def flatten_box(coco):
    coco.annotation(11)["bbox"] = [10, 5, 0, 15]


def move_box_out(coco):
    coco.annotation(11)["bbox"] = [70, 5, 20, 15]


def cut_polygon(coco):
    coco.annotation(11)["segmentation"] = [[1, 2, 3, 4]]


def break_rle(coco):
    coco.annotation(14)["segmentation"]["counts"][0] += 5


def remove_image(coco):
    Path(coco.image_path("rle.png")).unlink()


def cut_image(coco):
    path = Path(coco.image_path("rle.png"))
    path.write_bytes(path.read_bytes()[:500])


def change_image(coco):
    Image.new("RGB", (WIDTH + 3, HEIGHT)).save(coco.image_path("mixed.png"))


def repeat_image(coco):
    coco.content["images"].append(dict(coco.content["images"][0]))


PROBLEMS = [
    (break_category, ["unknown category", "'category_id' is 77"], 7),
    (break_image_id, ["annotation: 1", "'image_id' is 77"], 7),
    (repeat_id, ["annotation 11: this id occurs 2 times"], 8),
    (flatten_box, ["box: 1", "has no area"], 8),
    (move_box_out, ["box: 1", "lies outside the image"], 8),
    (cut_polygon, ["polygon: 1", "fewer than three points"], 7),
    (break_rle, ["RLE: 1", "covers"], 7),
    (remove_image, ["image file: 1", "rle.png"], 6),
    (cut_image, ["unreadable image: 1", "rle.png"], 6),
    # Mask 16 is RLE of the size that was declared: the image goes, with both of its masks.
    (change_image, ["other image: 1", "60 x 40", "63 x 40", "the declared size alone"], 6),
    (repeat_image, ["image: 1", "image 7: this id occurs 2 times"], 8),
]


@pytest.mark.parametrize(("damage", "words", "kept"), PROBLEMS)
def test_problem_is_reported_and_repaired(damage, words, kept, run, coco, tmp_path):
    damage(coco)
    status, output = run()
    assert status == 1 and "training would fail" in output
    for word in words:
        assert word in output
    before = Path(coco.json_file).read_bytes()
    status, output = run("--fix", "fixed.json")
    assert status == 0 and "Repaired copy: fixed.json" in output
    assert Path(coco.json_file).read_bytes() == before
    fixed = check_coco(tmp_path / "fixed.json", coco.image_root)  # raises if anything is wrong
    assert len(fixed["annotations"]) == kept
    assert check_data(tmp_path / "fixed.json", coco.image_root).problems == []


def test_repaired_boxes_are_those_of_the_masks(run, coco, tmp_path):
    flatten_box(coco)
    coco.annotation(13)["bbox"] = [30, 5, 20, 15]  # beside its mask
    assert run("--fix", "fixed.json")[0] == 0
    fixed = json.loads((tmp_path / "fixed.json").read_text())
    boxes = {a["id"]: a["bbox"] for a in fixed["annotations"]}
    assert boxes[11] == boxes[13] == [10, 5, 20, 15]
    assert boxes[17] == [0, 0, 60, 8]  # the crowd, as it was


def test_repair_refuses_to_overwrite(run, coco, tmp_path):
    status, output = run("--fix", coco.json_file)
    assert status == 2 and "is the input itself" in output
    (tmp_path / "link.json").symlink_to(coco.json_file)
    status, output = run("--fix", str(tmp_path / "link.json"))
    assert status == 2 and "is the input itself" in output
    (tmp_path / "other.json").write_text("mine")
    status, output = run("--fix", "other.json")
    assert status == 2 and "exists already" in output
    assert (tmp_path / "other.json").read_text() == "mine"


def test_two_categories_with_one_id_cannot_be_repaired(run, coco):
    coco.content["categories"].append({"id": 2, "name": "mouse"})
    status, output = run("--fix", "fixed.json")
    assert status == 2 and "category 2 is 'cat' and 'mouse'" in output


def test_exif_rotated_image_is_compared_as_it_is_shown(run, coco):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(coco.image_path("rle.png"), exif=exif)
    assert run()[0] == 0  # 40 x 60 pixels in the file are shown as 60 x 40


def test_what_spoils_training_is_a_warning(run, coco):
    coco.annotation(11)["bbox"] = [30, 5, 20, 15]  # its mask begins at 10
    coco.annotation(16)["bbox"] = [40, 20, 30, 15]  # the image ends at 60
    coco.content["annotations"].append({**coco.annotation(12), "id": 90})
    thin = [[5, 5, 7, 5, 7, 30, 5, 30]]
    coco.content["annotations"].append(
        {**coco.annotation(12), "id": 91, "bbox": [5, 5, 2, 25], "segmentation": thin}
    )
    status, output = run()
    assert status == 0
    for words in (
        "mask and box differ: 2",
        "'bbox' [30, 5, 20, 15], of the mask: [10.0, 5.0, 20.0, 15.0]",
        "box beyond the image: 1",
        "annotated twice: 1",
        "annotation 90 of image 7",
        "tiny object: 1",
        "2 x 25 px",
        "image without objects: 1",
        "'empty.png'",
        "rare class: 2",
        "'dog': 5 objects",
    ):
        assert words in output


def test_no_usable_object_fails(run, coco):
    coco.content["annotations"] = [coco.annotation(17)]
    status, output = run()
    assert status == 1 and "no object: 1" in output


def test_json_that_is_none_and_missing_files_are_user_errors(run, tmp_path, capsys):
    (tmp_path / "bad.json").write_text('{"images": [')
    assert main(["check-data", "bad.json", str(tmp_path)]) == 2
    assert "not valid json" in capsys.readouterr().err
    assert main(["check-data", "none.json", str(tmp_path)]) == 2


def test_statistics_count_objects_not_crowds(coco):
    statistics = data_statistics(coco.content)
    assert statistics.class_names == ["cat", "dog"] and statistics.crowds == 1
    assert statistics.objects_per_class.tolist() == [4, 3]
    # In the order of the file: polygons, rle, mixed, crowd, empty.
    assert statistics.objects_per_image.tolist() == [2, 2, 2, 1, 0]
    assert statistics.object_sizes[0] == pytest.approx(np.sqrt(20 * 15))


def test_boxes_of_masks_in_every_coding(coco):
    ids = (11, 13, 14, 16)  # polygon, compressed, list of counts, compressed
    annotations = [coco.annotation(id_) for id_ in ids]
    boxes = mask_boxes(annotations, [(HEIGHT, WIDTH)] * 4)
    expected = [[10, 5, 30, 20], [10, 5, 30, 20], [0, 0, 6, 7], [40, 20, 55, 35]]
    np.testing.assert_array_equal(boxes, expected)
    outside = {"segmentation": [[70, 5, 80, 5, 80, 9]]}
    assert np.isnan(mask_boxes([outside], [(HEIGHT, WIDTH)])).all()


def test_real_data_passes(real_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = real_data / "tiny_coco"
    json_file = str(folder / "annotations" / "instances_val2017.json")
    assert main(["check-data", json_file, str(folder / "val2017"), "--sheet", "s.png"]) == 0
    assert cv2.imread("s.png") is not None
    assert "Training would work." in capsys.readouterr().out


def test_the_work_grows_with_the_number_of_annotations_alone(tmp_path):
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    places = np.random.default_rng(0).uniform(10, 400, (10, 2)).tolist()  # the same in every image

    def check_so_many(count):
        images, annotations = [], []
        for i in range(count // 10):
            images.append({"id": i, "file_name": "a.png", "height": 480, "width": 640})
            for x, y in places:
                polygon = [
                    x,
                    y,
                    x + 50,
                    y,
                    x + 60,
                    y + 20,
                    x + 50,
                    y + 40,
                    x,
                    y + 40,
                    x - 1,
                    y + 20,
                ]
                entry = {"id": len(annotations) + 1, "image_id": i, "category_id": 1, "iscrowd": 0}
                entry |= {"bbox": [x - 1, y, 61, 40], "area": 2400, "segmentation": [polygon]}
                annotations.append(entry)
        content = {"images": images, "annotations": annotations}
        content["categories"] = [{"id": 1, "name": "thing"}]
        (tmp_path / "many.json").write_text(json.dumps(content))
        check = check_data(tmp_path / "many.json", tmp_path, read_images=False)
        assert check.problems == []

    assert_work_is_linear(check_so_many, 500)


def test_masks_at_the_border_are_no_finding():
    """Annotation tools let polygons end a pixel outside, and boxes with them."""
    image = {"id": 1, "file_name": "a", "height": 50, "width": 50}
    box = [-0.5, 10, 20.5, 10]
    polygon = [-0.5, 10, 20, 10, 20, 20, -0.5, 20]
    content = {
        "images": [image],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "segmentation": [polygon]}
        ],
        "categories": [{"id": 1, "name": "x"}],
    }
    assert kinds(quality_findings(content)) == ["rare class"]


def test_files_of_several_pages_are_named(coco):
    image = coco.content["images"][1]
    name = f"{image['file_name'].rpartition('.')[0]}.tif"
    pages = [Image.new("L", (image["width"], image["height"]), 50 * k) for k in range(3)]
    pages[0].save(Path(coco.image_root, name), save_all=True, append_images=pages[1:])
    image["file_name"] = name
    check = check_data(coco.write(), coco.image_root)
    (finding,) = (f for f in check.warnings if f.kind == "several pages")
    assert finding.message == f"'{name}' has 3 pages" and str(image["id"]) in finding.where
    assert check.trainable
