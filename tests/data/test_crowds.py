"""Objects exported as crowds: noticed, and learnt when the user says so."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.coco_masks import HEIGHT, WIDTH, compressed, mask_of, uncompressed

from rdsnet import get_cfg
from rdsnet.cli import main
from rdsnet.data.checks import check_coco
from rdsnet.data.crowds import crowd_findings, crowd_summary, crowds_as_objects, region_count
from rdsnet.data.datasets import register_coco_files
from rdsnet.data.train_loader import build_train_loader
from rdsnet.training.own_data import prepare
from rdsnet.training.settings import Wishes

# The fixture's annotations: 11 to 18, of which 17 is a crowd of one region.
ALL, MOST = range(11, 19), (12, 13, 14, 15, 16, 17)


def make_crowds(coco, ids):
    for id_ in ids:
        coco.annotation(id_)["iscrowd"] = 1


@pytest.mark.parametrize("code", [compressed, uncompressed])
def test_regions_of_a_mask(code):
    two = mask_of(2, 3, 10, 8) | mask_of(30, 3, 9, 9)
    assert region_count(code(mask_of(59, 39, 1, 1)), (HEIGHT, WIDTH)) == 1
    assert region_count(code(two), (HEIGHT, WIDTH)) == 2
    touching = mask_of(2, 3, 4, 4) | mask_of(6, 7, 4, 4)  # at a corner
    assert region_count(code(touching), (HEIGHT, WIDTH)) == 1
    assert region_count(code(mask_of(0, 0, 60, 40)), (HEIGHT, WIDTH)) == 1
    assert region_count(code(mask_of(0, 0, 0, 0)), (HEIGHT, WIDTH)) == 0


def test_regions_of_polygons():
    apart = [[2, 2, 8, 2, 8, 8, 2, 8], [20, 2, 28, 2, 28, 8, 20, 8]]
    assert region_count(apart, (HEIGHT, WIDTH)) == 2
    assert region_count([apart[0], [5, 5, 12, 5, 12, 12, 5, 12]], (HEIGHT, WIDTH)) == 1


def test_a_crowd_of_one_region_is_named_and_one_of_several_is_none(coco):
    (finding,) = crowd_findings(coco.content)
    assert finding.where == "annotation 17 of image 9 ('crowd.png')"
    assert "one connected region" in finding.message
    scattered = mask_of(1, 1, 5, 5) | mask_of(20, 20, 9, 9)
    coco.annotation(17)["segmentation"] = uncompressed(scattered)
    assert list(crowd_findings(coco.content)) == []


def test_crowds_are_named_when_most_annotations_are(coco):
    scattered = mask_of(1, 1, 5, 5) | mask_of(20, 20, 9, 9)
    make_crowds(coco, MOST)
    for id_ in MOST:
        coco.annotation(id_)["segmentation"] = compressed(scattered)
    findings = list(crowd_findings(coco.content))
    assert [f.where.split()[1] for f in findings] == [str(id_) for id_ in MOST]
    assert "6 of 8 annotations" in findings[0].message


def test_summary_begins_at_half():
    assert crowd_summary(0, 0) is None and crowd_summary(3, 7) is None
    assert crowd_summary(4, 8).startswith("4 of 8 annotations are crowds")
    assert crowd_summary(8, 8).startswith("all 8 annotations are crowds")


def test_crowds_become_objects_and_nothing_else_changes(coco):
    make_crowds(coco, (12,))
    coco.annotation(13)["iscrowd"] = True
    before = json.dumps(coco.content)
    content, count = crowds_as_objects(coco.content)
    assert count == 3 and json.dumps(coco.content) == before
    assert [a["iscrowd"] for a in content["annotations"]] == [0] * 8
    for new, old in zip(content["annotations"], coco.content["annotations"], strict=True):
        assert {**new, "iscrowd": 0} == {**old, "iscrowd": 0}


@pytest.fixture
def run(coco, tmp_path, monkeypatch, capsys):
    """A subcommand on the data; gives exit status and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(command, *arguments):
        capsys.readouterr()
        status = main([*command, coco.write(), coco.image_root, *arguments])
        output = capsys.readouterr()
        return status, output.out + output.err

    return call


def test_where_all_are_crowds_the_reason_and_the_remedy_are_said(coco, run):
    make_crowds(coco, ALL)
    status, printed = run(["check-data"])
    assert status == 1
    assert "no object: 1" in printed and "all 8 annotations are crowds (iscrowd 1)" in printed
    assert "Training would fail. 'rdsnet check-data --fix OUT.json --crowds-are-objects'" in printed
    status, printed = run(["train", "--data"])
    assert status == 2 and "all 8 annotations are crowds" in printed
    assert "--crowds-are-objects" in printed and "DATASETS.CROWDS_ARE_OBJECTS True" in printed


def test_fix_makes_crowds_objects(coco, run, tmp_path):
    make_crowds(coco, ALL)
    status, printed = run(["check-data"], "--fix", "fixed.json", "--crowds-are-objects")
    assert status == 0 and "8 crowds made objects" in printed
    fixed = check_coco(tmp_path / "fixed.json", coco.image_root)["annotations"]
    assert [a["iscrowd"] for a in fixed] == [0] * 8
    assert {a["id"]: a["segmentation"] for a in fixed} == {
        id_: coco.annotation(id_)["segmentation"] for id_ in ALL
    }


def test_an_empty_brush_mask_is_left_out_of_the_repaired_copy(coco, run, tmp_path):
    """As a crowd it may be empty, as an object not: the verdict on the copy must be true."""
    make_crowds(coco, MOST)
    coco.annotation(14)["segmentation"] = uncompressed(mask_of(0, 0, 0, 0))
    status, printed = run(["check-data"], "--fix", "fixed.json", "--crowds-are-objects")
    assert status == 0 and "Training would work." in printed
    fixed = check_coco(tmp_path / "fixed.json", coco.image_root)["annotations"]
    assert sorted(a["id"] for a in fixed) == [11, 12, 13, 15, 16, 17, 18]


@pytest.mark.parametrize("option", ["--crowds-are-objects", "--inner-polygons-are-holes"])
def test_options_of_the_repair_need_it(option, run):
    status, printed = run(["check-data"], option)
    assert status == 2 and f"{option} can only be given together with --fix" in printed


def config(coco, **more):
    cfg = get_cfg()
    cfg.DATASETS.COCO_FILES = [["brush", coco.write(), coco.image_root]]
    cfg.DATASETS.TRAIN = ("brush",)
    cfg.merge_from_list([word for item in more.items() for word in item])
    register_coco_files(cfg)
    return cfg


def test_the_config_key_makes_crowds_objects_for_training_and_evaluation(coco):
    make_crowds(coco, MOST)
    config(coco, **{"DATASETS.CROWDS_ARE_OBJECTS": True})
    records = DatasetCatalog.get("brush")
    assert [a["iscrowd"] for record in records for a in record["annotations"]] == [0] * 8
    with open(MetadataCatalog.get("brush").json_file) as file:  # what evaluation reads
        assert [a["iscrowd"] for a in json.load(file)["annotations"]] == [0] * 8
    # Registered again with the other value, it is read again.
    config(coco)
    records = DatasetCatalog.get("brush")
    assert sum(a["iscrowd"] for record in records for a in record["annotations"]) == 6


def test_training_on_crowds_alone_by_a_config_is_refused(coco):
    make_crowds(coco, ALL)
    with pytest.raises(ValueError, match="nothing to train on.*crowds .iscrowd 1. do not count"):
        build_train_loader(config(coco), mapper=dict)


def notes(coco, *opts, val=None):
    data = (coco.write(), coco.image_root)
    return prepare(
        data, val, config="small", output="out", wishes=Wishes(), hold_out=False, opts=opts
    )[2].notes


def test_training_says_at_the_start_when_most_are_crowds(coco, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    make_crowds(coco, MOST)
    (text,) = [text for topic, text in notes(coco) if topic == "Crowds"]
    assert "6 of 8 annotations are crowds" in text
    key = ("DATASETS.CROWDS_ARE_OBJECTS", "True")
    assert "Crowds" not in dict(notes(coco, *key))
    assert "8 objects" in dict(notes(coco, *key))["Data"]
    both = notes(coco, val=(coco.json_file, coco.image_root))
    assert [topic for topic, _ in both].count("Crowds") == 2


def test_check_data_follows_a_config_that_has_the_key(coco, run, tmp_path):
    make_crowds(coco, ALL)
    (tmp_path / "mine.yaml").write_text("DATASETS:\n  CROWDS_ARE_OBJECTS: True\n")
    status, printed = run(["check-data"], "--config", "mine.yaml")
    assert status == 0 and "0 regions, left out" in printed and "crowd: " not in printed


def test_masks_of_crowds_are_what_their_runs_say():
    """The two codings of the fixture: against each other."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[::2, ::2] = 1  # 600 pixels, none of which touches another
    for code in (compressed, uncompressed):
        assert region_count(code(mask), (HEIGHT, WIDTH)) == 600
