"""``paper.md`` and ``paper.html`` from results made by hand."""

import json

import cv2
import numpy as np
import pytest

from rdsnet.paper import document, published
from rdsnet.paper.plan import Paper

METRICS = dict.fromkeys(published.METRICS, 30.0)
TASKS = {"bbox": METRICS, "bbox_regressed": METRICS, "segm": METRICS}


@pytest.fixture
def paper(tmp_path):
    made = Paper(tmp_path, "lite", ["some/train.json", "photos"], None, [1, 2], 2.5, 50)
    made.data_options = {"DATASETS.TRAIN": ("a",), "INPUT.MIN_SIZE_TRAIN": (0,)}
    return made


def finish(paper, name, seed, **more):
    (training,) = (t for t in paper.trainings if t.name == name)
    folder = paper.run_folder(training, seed)
    folder.mkdir(parents=True)
    expands = [str(expand) for expand in training.test_expands]
    result = {"iterations": 50, "batch": 4, "torch": "2", "date": "2026-01-01", "seed": seed}
    result["machine"] = "a machine"
    result |= {"metrics": {expand: TASKS for expand in expands}, **more}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_what_is_finished_is_written_and_what_is_not_is_said(paper):
    table_4 = {"none": METRICS, "direct": METRICS, "MBRM": {**METRICS, "AP": 31.0}}
    folder = finish(paper, "rdsnet", 1, table4=table_4)
    cv2.imwrite(str(folder / "fig1.jpg"), np.zeros((40, 60, 3), np.uint8))
    finish(paper, "yolact", 1)
    path = document.write(paper, {"rdsnet": 3.21})
    text, html = (paper.folder / "paper.md").read_text(), path.read_text()
    for shown in (text, html):
        assert "Data: some/train.json; models: lite; 50 iterations of 4 images" in shown
        assert "Not finished with all seeds: RDSNet, RetinaNet, Mask R-CNN" in shown
        assert "MBRM: +1.0 box AP; the paper: +1.3." in shown
        assert "Table 1" in shown and "Table 3" in shown and "Fig. 1" in shown
        assert "Fig. 5" not in shown  # there is no picture of it
    assert "| RDSNet " in text and "| 3.2 " in text
    assert "(pictures/fig1.jpg)" in text and (paper.folder / "pictures" / "fig1.jpg").is_file()
    assert "data:image/jpeg" in html and "… the paper" in html


def test_what_is_left_out_is_said_and_nobody_waits_for_it(paper):
    paper.without = ["cascade_mask_rcnn", "mask_rcnn"]
    finish(paper, "rdsnet", 1)
    text = " ".join(document.circumstances(paper, document.finished_runs(paper)))
    assert "Left out (--without): cascade_mask_rcnn, mask_rcnn." in text
    assert "Not finished" in text and "Mask R-CNN" not in text.partition("Not finished")[2]


def test_lengths_and_kernels_that_differ_are_said(paper):
    finish(paper, "rdsnet", 1, kernel_not_fitted="nothing found")
    finish(paper, "mask_rcnn", 1, iterations=90_000, batch=16)
    finish(paper, "retinanet", 1, machine="another machine")
    text = " ".join(document.circumstances(paper, document.finished_runs(paper)))
    assert "50 iterations of 4 images for RDSNet, RetinaNet; 90,000 iterations of 16 images" in text
    assert "MBRM has the published kernel in RDSNet: the model has found no object" in text
    assert "torch 2, a machine, another machine." in text


def test_nothing_finished_is_no_error(paper):
    document.write(paper, {})
    assert "Nothing is finished yet" in (paper.folder / "paper.md").read_text()
