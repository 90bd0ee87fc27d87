"""Annotations of any tool on the command line: converted, checked, trained on, evaluated."""

import json
from pathlib import Path

import pytest
from helpers import exports
from helpers.exports import scene

from rdsnet.cli import build_parser, main
from rdsnet.data.checks import check_coco
from rdsnet.training.data_parts import evaluated_part
from rdsnet.training.own_data import prepare
from rdsnet.training.settings import Wishes


@pytest.fixture(autouse=True)
def _in_a_folder_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_convert_data_writes_one_json_and_says_what_it_found(tmp_path, capsys):
    exports.write_labelme(tmp_path / "mein Export", scene())
    before = files_of(tmp_path / "mein Export")
    assert main(["convert-data", "mein Export", "out/all.json"]) == 0
    output = capsys.readouterr().out
    assert "labelme json, 3 images, 4 objects; 2 classes (Käfer, leaf blade)" in output
    content = check_coco("out/all.json", tmp_path / "mein Export")
    assert len(content["annotations"]) == 4
    assert files_of(tmp_path / "mein Export") == before
    assert files_of(tmp_path / "out") == ["all.json"]


def test_convert_data_writes_every_part(tmp_path, capsys):
    exports.write_yolo(tmp_path / "yolo", scene()[:1], scene()[1:])
    assert main(["convert-data", "yolo/data.yaml", "all.json"]) == 0
    counts = {
        name: len(json.loads(Path(name).read_text())["images"])
        for name in ("all.json", "all_val.json")
    }
    assert counts == {"all.json": 1, "all_val.json": 2}
    assert "train 1 image, 3 objects; val 2 images, 1 object" in capsys.readouterr().out


@pytest.mark.parametrize("there", ["all.json", "all_val.json"])
def test_convert_data_overwrites_nothing(there, tmp_path, capsys):
    exports.write_yolo(tmp_path / "yolo", scene()[:1], scene()[1:])
    Path(there).write_text("mine")
    assert main(["convert-data", "yolo", "all.json"]) == 2
    assert f"{there} exists already" in capsys.readouterr().err
    assert Path(there).read_text() == "mine"
    assert sum(path.suffix == ".json" for path in tmp_path.iterdir()) == 1


def test_what_is_unknown_is_one_message(capsys):
    Path("x.json").write_text('{"frames": []}')
    for command in (["convert-data", "x.json", "y.json"], ["check-data", "x.json"]):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert "no annotation format that is known" in message and "Traceback" not in message
        assert "frames" in message and "YOLO" in message


def test_check_data_checks_every_part_of_an_export(tmp_path, capsys):
    exports.write_yolo(tmp_path / "yolo", scene()[:1], scene()[1:])
    assert main(["check-data", "yolo"]) == 0
    output = capsys.readouterr().out
    assert "The part 'train':" in output and "The part 'val':" in output
    assert output.count("Training would work.") == 2
    folder = tmp_path / "output" / "check-data"
    assert files_of(folder) == ["yolo.json", "yolo.png", "yolo_val.json", "yolo_val.png"]


def test_check_data_finds_what_is_wrong_in_any_format(tmp_path, capsys):
    exports.write_labelme(tmp_path / "l", scene())
    (tmp_path / "l" / "blatt grün.jpg").write_bytes(b"no image")
    (tmp_path / "l" / "Käfer 1.png").unlink()
    assert main(["check-data", "l", "--fix", "fixed.json"]) == 1
    output = capsys.readouterr().out
    assert "Käfer 1.png does not exist" in output and "unreadable image: 1" in output


def test_what_was_left_out_is_said_by_check_data(tmp_path, capsys):
    exports.write_labelme(tmp_path / "l", scene())
    photo = scene()[2]
    shapes = [exports.labelme_shape("dot", [[3, 3]], "point")]
    exports.write_json(tmp_path / "l" / "leer.json", exports.labelme_file(photo, shapes))
    main(["check-data", "l", "--no-images"])
    assert "Left out: shapes (point) without area (1: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "data", "opts"),
    [
        (["a.json", "photos"], ("a.json", "photos"), []),
        (["data.yaml"], ("data.yaml", None), []),
        (["data.yaml", "SOLVER.MAX_ITER", "5"], ("data.yaml", None), ["SOLVER.MAX_ITER", "5"]),
        (["a.json", "photos", "SEED", "5"], ("a.json", "photos"), ["SEED", "5"]),
        (["a.json", "IMAGES"], ("a.json", "IMAGES"), []),
    ],
)
def test_images_need_not_be_given_and_options_may_follow(words, data, opts):
    args = build_parser().parse_args(["train", "--data", *words])
    assert args.data == data and args.opts == opts
    args = build_parser().parse_args(["train", "--data", *words, "--output", "o", "SEED", "1"])
    assert args.data == data and args.output == "o" and args.opts == [*opts, "SEED", "1"]


def test_a_list_of_files_is_refused_in_words(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--data", "a.json", "b.json", "c.json"])
    assert "3 paths are given" in capsys.readouterr().err


def prepared(data, val=None, **more):
    _, opts, settings = prepare(data, val, config="small", output="o", wishes=Wishes(), **more)
    options = dict(zip(opts[::2], opts[1::2]))
    notes = [f"{topic}: {text}" for topic, text in settings.notes]
    return settings.options, "\n".join(notes), options


def test_yolos_own_validation_part_is_evaluated_on(tmp_path):
    exports.write_yolo(tmp_path / "yolo", scene()[:1], scene()[1:])
    options, notes, _ = prepared(("yolo/data.yaml", None))
    train, val = options["DATASETS.COCO_FILES"]
    assert train[1:] == [str(tmp_path / "o/data/train.json"), str(tmp_path / "yolo")]
    assert val[1:] == [str(tmp_path / "o/data/val.json"), str(tmp_path / "yolo")]
    assert len(check_coco(*train[1:])["annotations"]) == 3
    assert len(check_coco(*val[1:])["images"]) == 2
    assert "Annotations: yolo/data.yaml: YOLO, train 1 image" in notes


def test_with_no_val_nothing_is_evaluated_on(tmp_path):
    exports.write_yolo(tmp_path / "yolo", scene()[:1], scene()[1:])
    options, _, _ = prepared(("yolo", None), hold_out=False)
    assert len(options["DATASETS.COCO_FILES"]) == 1 and options["DATASETS.TEST"] == ()


def test_another_tool_for_validation_gets_the_same_classes(tmp_path):
    """Without the second class, and in another order."""
    exports.write_yolo(tmp_path / "yolo", scene())
    exports.write_via(tmp_path / "via", scene()[1:])
    options, _, _ = prepared(("yolo", None), ("via", None))
    train, val = (json.loads(Path(file[1]).read_text()) for file in options["DATASETS.COCO_FILES"])
    assert train["categories"] == val["categories"]
    (annotation,) = val["annotations"]
    assert annotation["category_id"] == train["categories"][1]["id"]


def test_a_json_of_coco_for_validation_gets_the_ids_of_another_tools_classes(tmp_path):
    exports.write_yolo(tmp_path / "yolo", scene())
    exports.write_via(tmp_path / "via", scene())
    assert main(["convert-data", "via", "val.json"]) == 0
    content = json.loads(Path("val.json").read_text())
    ids = {category["id"]: category["id"] + 40 for category in content["categories"]}
    for category in content["categories"]:
        category["id"] = ids[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    Path("val.json").write_text(json.dumps(content))
    options, _, _ = prepared(("yolo", None), ("val.json", "via"))
    train, val = (json.loads(Path(file[1]).read_text()) for file in options["DATASETS.COCO_FILES"])
    assert train["categories"] == val["categories"]
    assert [a["category_id"] for a in train["annotations"]] == [
        a["category_id"] for a in val["annotations"]
    ]


def test_nothing_is_written_into_the_users_folder_or_before_it_is_sure(tmp_path):
    exports.write_labelme(tmp_path / "l", scene())
    (tmp_path / "l" / "leer.png").unlink()
    before = files_of(tmp_path)
    with pytest.raises(FileNotFoundError, match="leer.png does not exist"):
        prepared(("l", None))
    assert files_of(tmp_path) == before


def test_evaluation_data_get_the_ids_of_the_model(tmp_path):
    exports.write_via(tmp_path / "via", scene())
    classes = [[5, "leaf blade"], [9, "Käfer"]]
    json_file, images = evaluated_part(("via", None), classes, tmp_path / "o")
    content = check_coco(json_file, images)
    assert [[c["id"], c["name"]] for c in content["categories"]] == classes
    assert Path(json_file).parent == tmp_path / "o" / "data"


def test_eval_takes_data(tmp_path, monkeypatch):
    import rdsnet.training

    exports.write_voc(tmp_path / "voc", scene())
    runs = []
    monkeypatch.setattr(rdsnet.training, "run", runs.append)
    config = str(Path(__file__).parents[2] / "configs" / "small" / "rdsnet_small.yaml")
    command = ["eval", "--config-file", config, "--data", "voc", "OUTPUT_DIR", "o"]
    assert main(command) == 0
    (run,) = runs
    options = dict(zip(run.opts[::2], run.opts[1::2]))
    assert run.eval_only and options["DATASETS.TEST"] == f"('{tmp_path.name}_voc',)".replace(
        "-", "_"
    )
    assert "voc_evaluated.json" in options["DATASETS.COCO_FILES"]
