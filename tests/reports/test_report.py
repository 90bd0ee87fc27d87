"""The report of a run: there whatever the run was like, self-contained, and never in its way."""

import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from rdsnet import get_cfg
from rdsnet.data.datasets import register_coco_files
from rdsnet.evaluation import RDSNetEvaluator
from rdsnet.reports import report as reports

SIZE = 60, 80  # H, W


def make_data(folder, name, classes, images=3, crowd=False):
    """A COCO file of rectangles (and a crowd in each image); returns the COCO_FILES entry."""
    rng = np.random.default_rng(0)
    content = {"images": [], "annotations": []}
    content["categories"] = [{"id": 3 + 2 * k, "name": n} for k, n in enumerate(classes)]
    for i in range(images):
        file = f"{i}.png"
        cv2.imwrite(str(folder / file), rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8))
        content["images"].append({"id": i, "file_name": file, "height": 60, "width": 80})
        for n in range(2 + crowd):
            x, y = 4 + 25 * n, 5 + 3 * i
            w, h = 18, 20
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            is_crowd = int(crowd and n == 2)
            region = [corners]
            if is_crowd:
                runs = [x * 60 + y] + [20, 40] * 17 + [20]
                region = {"size": [60, 80], "counts": [*runs, 4800 - sum(runs)]}
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": i,
                    "category_id": content["categories"][(i + n) % len(classes)]["id"],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": is_crowd,
                    "segmentation": region,
                }
            )
    (folder / f"{name}.json").write_text(json.dumps(content))
    return [name, str(folder / f"{name}.json"), str(folder)]


def found(boxes, classes, scores, masks=True):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    fields = {
        "pred_boxes": Boxes(boxes),
        "regressed_boxes": Boxes(boxes + 1.5),
        "scores": torch.tensor(scores),
        "pred_classes": torch.tensor(classes, dtype=torch.int64),
    }
    if masks:
        dense = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
        for n, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
            dense[n, y1:y2, x1:x2] = True
        fields["pred_masks"] = dense
    return Instances(SIZE, **fields)


def run(tmp_path, classes, detections, *, crowd=False, name=None, masks=True, sets=1):
    """Evaluate ``detections(image id) -> (boxes, classes, scores)``; returns the run's config."""
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    name = name or f"report_{tmp_path.name}"
    names = [f"{name}_{k}" for k in range(sets)]
    cfg.DATASETS.COCO_FILES = [make_data(tmp_path, n, classes, crowd=crowd) for n in names]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), tuple(names)
    register_coco_files(cfg)
    for n in names:
        evaluator = RDSNetEvaluator.from_config(cfg, n)
        evaluator.reset()
        for i in range(3):
            evaluator.process(
                [{"image_id": i}], [{"instances": found(*detections(i), masks=masks)}]
            )
        evaluator.evaluate()
    return cfg


def good(i):
    y = 5 + 3 * i
    return (
        [[4, y, 22, y + 20], [30, y, 48, y + 19], [60, 40, 70, 50]],
        [i % 2, 1, 0],
        [0.9, 0.8, 0.2],
    )


class Reader(HTMLParser):
    """Checks that elements are closed, and collects the text, ids, and what would be loaded."""

    def __init__(self, html):
        super().__init__()
        self.open, self.words, self.sources, self.ids = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        self.sources += [attributes[k] for k in ("src", "href", "xlink:href") if k in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []

    def handle_startendtag(self, tag, attributes):
        attributes = dict(attributes)
        self.sources += [attributes[k] for k in ("src", "href", "xlink:href") if k in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def read(cfg):
    html = reports.write_report(cfg).read_text()
    page = Reader(html)
    outside = [s for s in page.sources if not s.startswith(("data:", "#"))]
    assert not outside and "url(http" not in html and "@import" not in html
    assert len(set(page.ids)) == len(page.ids)
    assert "could not be made" not in page.text
    return page


def test_everything_an_evaluation_shows(tmp_path):
    cfg = run(tmp_path, ["cat", "<b>&dog"], good)
    metrics = [
        {"iteration": k, "total_loss": 2 / (k + 1), "loss_mask": 1 / (k + 1), "time": 0.25}
        for k in (*range(0, 600, 20), 599)
    ]
    metrics += [{"iteration": k, "bbox/AP": k / 10, "segm/AP": float("nan")} for k in (300, 600)]
    (tmp_path / "output" / "metrics.json").write_text("\n".join(map(json.dumps, metrics)))
    page = read(cfg)
    for heading in ("Average precision", "Training", "By overlap and size", "By class", "Errors",
                    "Boundary refinement", "Best images", "Worst images", "This run"):  # fmt: skip
        assert heading in page.text
    assert "600 iterations" in page.text and "0.25 s (median)" in page.text
    assert "<b>&dog" in page.text  # as text, not as an element
    assert "on 3 images with 6 objects and 9 detections" in page.text
    # Regressed boxes are shifted by 1.5 px, so every edge was moved.
    assert "It moved 100% of the edges" in page.text
    assert "1.50 pixels before" in page.text
    # Image 0 has both objects, right of class; every third detection scores below the best F1.
    assert "2 of 2 objects found, 0 false" in page.text


def test_nothing_detected(tmp_path):
    page = read(run(tmp_path, ["cat"], lambda i: ([], [], [])))
    assert "Nothing was detected" in page.text and "0 of 2 objects found" in page.text


def test_many_classes_and_crowds(tmp_path):
    classes = [f"class number {k}" for k in range(80)]
    page = read(run(tmp_path, classes, good, crowd=True))
    assert "class number 79" in page.text
    assert "with 6 objects" in page.text  # crowds are not objects


def test_boxes_without_masks(tmp_path):
    page = read(run(tmp_path, ["cat", "dog"], good, masks=False))
    assert "points of box AP50 lost" in page.text and "mask AP50 lost" not in page.text


def test_several_data_sets_are_kept_apart(tmp_path):
    page = read(run(tmp_path, ["cat", "dog"], good, sets=2))
    for k in range(2):
        assert f"Errors (report_{tmp_path.name}_{k})" in page.text


def test_without_data_to_validate_on(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.DATASETS.TEST, cfg.DATASETS.TRAIN = str(tmp_path), (), ("mine",)
    (tmp_path / "metrics.json").write_text(json.dumps({"iteration": 0, "total_loss": 2.0}))
    page = read(cfg)
    assert "Training" in page.text and "Average precision" not in page.text


def test_an_image_that_cannot_be_read_is_left_out(tmp_path, caplog):
    cfg = run(tmp_path, ["cat", "dog"], good)
    (tmp_path / "0.png").write_bytes(b"no image any more")
    page = read(cfg)
    assert "1.png" in page.text and "0.png" not in page.text
    assert "shows no picture of" in caplog.text and "0.png" in caplog.text


def test_a_broken_section_says_why_and_the_rest_is_there(tmp_path, monkeypatch):
    cfg = run(tmp_path, ["cat", "dog"], good)

    def broken(*_):
        raise RuntimeError("out of ink")

    monkeypatch.setattr(reports.parts.figures, "error_figure", broken)
    page = Reader(reports.write_report(cfg).read_text())
    assert "This could not be made: out of ink." in page.text and "Best images" in page.text


def test_a_report_that_fails_is_a_warning(tmp_path, monkeypatch, caplog):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.DATASETS.TEST = str(tmp_path), ()
    monkeypatch.setattr(reports.Page, "html", lambda self: 1 / 0)
    assert reports.report_run(cfg) is None
    assert "The report could not be written: division by zero" in caplog.text
    assert "TEST.REPORT False" in caplog.text


def test_it_can_be_switched_off(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.DATASETS.TEST, cfg.TEST.REPORT = str(tmp_path), (), False
    assert reports.report_run(cfg) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("iteration", "written"), [(9, True), (4, False)])
def test_only_a_finished_training_is_reported(tmp_path, iteration, written):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.DATASETS.TEST, cfg.DATASETS.TRAIN = str(tmp_path), (), ()
    hook = reports.ReportHook(cfg)
    hook.trainer = type("Trainer", (), {"iter": iteration, "max_iter": 10, "model": None})
    hook.after_train()
    assert (tmp_path / "report.html").exists() == written
