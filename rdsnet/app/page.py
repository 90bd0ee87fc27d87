"""The local page of ``rdsnet app``: an image goes in, objects come out.

The model is loaded once, from the command line; nothing that a browser sends is used as a config,
a checkpoint or a path. An image is predicted once, with all objects that have a score at all; the
slider and the boxes below it only change what is drawn.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pycocotools.mask as coco_mask

from rdsnet.data.channels import picture_of
from rdsnet.evaluation import instances_to_coco_json
from rdsnet.evaluation.thresholds import DEFAULT_SCORE
from rdsnet.formatting import decimal
from rdsnet.prediction.thresholds import ScoreThresholds, certain
from rdsnet.prediction.uploads import UploadPredictor
from rdsnet.prediction.writers.coco import coco_document
from rdsnet.visualization import draw_objects, objects_from_results
from rdsnet.visualization.objects import class_name

if TYPE_CHECKING:
    import gradio as gr

_SHOWN_SIDE = 1600  # pixels of the picture in the browser
_SESSIONS = 20  # whose images are remembered
_SECONDS_KEPT = 3600  # of an image and what was found in it
# From which score on objects are shown: one number, or that of each class.
Lowest = float | ScoreThresholds
CONTROLS = ("masks", "boxes", "boxes before MBRM")
_HEADERS = ("class", "score", "box: x1, y1, x2, y2", "box before MBRM", "area, px")


@dataclass
class Found:
    """An image and its objects.

    Attributes:
        name: of the file, without its folder.
        image: (H, W, 3) uint8 RGB.
        results: COCO results, best first, with contiguous ``category_id``.
        is_cut_off: whether there were more than the page was started for.
        pages: of the file; the first is shown.
    """

    name: str
    image: np.ndarray
    results: list[dict]
    is_cut_off: bool = False
    pages: int = 1


class Finder(UploadPredictor):
    """The model, and what is shown of what it finds."""

    def find(self, path: str | Path) -> Found:
        """Raises ValueError, in words for the person at the browser."""
        upload = self.read(Path(path).name, path)
        result = self.predictor.find([self.prepare(upload)])[0]
        instances = certain(result["instances"].to("cpu"), self.lowest_score)
        results = instances_to_coco_json(instances, image_id=1)
        results.sort(key=lambda result: -result["score"])
        image, is_cut_off = picture_of(upload.image)[:, :, ::-1], self.predictor.was_cut_off
        return Found(upload.name, image, results, is_cut_off, upload.pages)

    def draw(self, found: Found, score: Lowest, shown: Sequence[str]) -> np.ndarray:
        """The image with those of ``CONTROLS`` drawn that are in ``shown``, (H, W, 3) RGB."""
        objects = objects_from_results(chosen(found, score), self.class_names)
        if "masks" not in shown:
            objects = replace(objects, rles=None)
        if "boxes before MBRM" not in shown:
            objects = replace(objects, regressed_boxes=None)
        if "boxes" not in shown:  # far outside the picture
            objects = replace(
                objects, boxes=np.full((len(objects), 4), -1e4), labels=[""] * len(objects)
            )
        picture = draw_objects(np.ascontiguousarray(found.image), objects)
        shrink = _SHOWN_SIDE / max(picture.shape[:2])
        if shrink < 1:
            picture = cv2.resize(picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        return picture

    def table(self, found: Found, score: Lowest) -> list[list]:
        """Rows under ``_HEADERS``."""
        return [
            [
                class_name(self.class_names, result["category_id"]),
                round(result["score"], 3),
                _corners(result["bbox"]),
                _corners(result.get("bbox_regressed", result["bbox"])),
                int(coco_mask.area(result["segmentation"])),
            ]
            for result in chosen(found, score)
        ]

    def coco(self, found: Found, score: Lowest) -> dict:
        """A COCO data set of one image; annotations also have ``score`` and ``bbox_regressed``."""
        classes = self.class_names, self.category_ids
        return coco_document(found.name, found.image.shape[:2], chosen(found, score), *classes)


def chosen(found: Found, score: Lowest) -> list[dict]:
    """The results with at least this score, or that of their class."""
    if isinstance(score, ScoreThresholds):
        lowest = score.of_classes
        return [r for r in found.results if r["score"] >= lowest[r["category_id"]]]
    return [result for result in found.results if result["score"] >= score]


def _corners(box: Sequence[float]) -> str:
    x, y, width, height = box
    return ", ".join(decimal(value) for value in (x, y, x + width, y + height))


def _build_page(finder: Finder, folder: Path, max_upload_mb: float) -> gr.Blocks:
    """The page as ``gradio.Blocks``; ``folder`` is where files for download are written."""
    import gradio as gr

    thresholds = finder.thresholds

    def find(path: str | None, score: float, by_class: bool, shown: list[str]) -> tuple:
        if path is None:
            return None, *show(None, score, by_class, shown)
        try:
            found = finder.find(path)
        except ValueError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        return found, *show(found, score, by_class, shown)

    def show(found: Found | None, score: float, by_class: bool, shown: list[str]) -> tuple:
        if found is None:
            return None, "", [], gr.update(interactive=False)
        score = thresholds if by_class else min(max(float(score), 0.0), 1.0)
        rows = finder.table(found, score)
        file = Path(tempfile.mkdtemp(dir=folder)) / f"{Path(found.name).stem}.json"
        file.write_text(json.dumps(finder.coco(found, score)), encoding="utf-8")
        download = gr.update(value=str(file), interactive=True)
        text = f"**{len(rows)}** of {len(found.results)} objects in {found.name}"
        if found.pages > 1:
            text += f", the first of its {found.pages} pages (all: rdsnet predict)"
        if found.is_cut_off:
            text += (
                ". There were more; the least certain ones were cut off (start the page with a "
                "larger --max-detections)"
            )
        return finder.draw(found, score, shown), text, rows, download

    with gr.Blocks(
        title="RDSNet",
        analytics_enabled=False,
        delete_cache=(_SECONDS_KEPT, _SECONDS_KEPT),
        fill_width=True,
    ) as page:
        found = gr.State(time_to_live=_SECONDS_KEPT)
        gr.Markdown("# RDSNet\nDrop an image: the model says what is in it, and where.")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                file = gr.File(
                    label=f"Image (at most {max_upload_mb:g} MB, "
                    f"{finder.max_megapixels:g} megapixels)",
                    file_types=["image"],
                    height=160,
                    elem_id="image",
                )
                score = gr.Slider(
                    finder.lowest_score,
                    1,
                    DEFAULT_SCORE if thresholds.differ else thresholds.lowest,
                    step=0.001,
                    label="Lowest score",
                    info=f"Best in validation: {thresholds.text()}" if thresholds.fitted else None,
                    elem_id="score",
                )
                by_class = gr.Checkbox(
                    thresholds.differ,
                    visible=thresholds.differ,
                    label="For every class its best score",
                    elem_id="by-class",
                )
                shown = gr.CheckboxGroup(
                    list(CONTROLS), value=list(CONTROLS), label="Show", elem_id="shown"
                )
                download = gr.DownloadButton("COCO json", interactive=False, elem_id="download")
            with gr.Column(scale=3):
                text = gr.Markdown("", elem_id="summary")
                picture = gr.Image(
                    label="Solid boxes: after MBRM. Dashed: as regressed.",
                    format="png",
                    interactive=False,
                    elem_id="picture",
                    buttons=["download", "fullscreen"],  # and none that shares it
                )
                table = gr.Dataframe(
                    headers=list(_HEADERS), interactive=False, label="Objects", elem_id="objects"
                )
        outputs = [picture, text, table, download]
        quiet = {"api_visibility": "private"}
        chosen_by = [score, by_class, shown]
        file.change(find, [file, *chosen_by], [found, *outputs], **quiet)
        score.input(lambda: False, None, by_class, **quiet)  # whoever moves it wants one score
        for control in (score.change, by_class.change, shown.change):
            control(show, [found, *chosen_by], outputs, trigger_mode="always_last", **quiet)
    return page


def serve(
    config_file: str | None,
    weights: str,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_upload_mb: float = 20.0,
    max_megapixels: float = 50.0,
    max_detections: int | None = None,
    opts: Sequence[str] = (),
    trust_checkpoint: bool = False,
) -> None:
    """Load the model and answer browsers until interrupted. Arguments: see ``rdsnet app --help``.

    Raises:
        ModuleNotFoundError: without gradio.
        FileNotFoundError, ValueError: for a config or weights that are missing or do not fit.
    """
    folder = Path(tempfile.mkdtemp(prefix="rdsnet-app-"))
    # Read when gradio is imported: no usage statistics, no look for newer versions, and uploads in
    # a folder that goes away with the page.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    try:
        try:
            import gradio as gr
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the page needs gradio: pip install 'rdsnet[app]'", name=error.name
            ) from error
        finder = Finder(
            config_file, weights, max_megapixels, opts, trust_checkpoint, max_detections
        )
        page = _build_page(finder, folder, max_upload_mb)
        fonts = ["system-ui", "Segoe UI", "DejaVu Sans", "sans-serif"]
        mono = ["ui-monospace", "DejaVu Sans Mono", "monospace"]
        page.queue(default_concurrency_limit=1, max_size=32)
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            max_file_size=int(max_upload_mb * 2**20),
            state_session_capacity=_SESSIONS,
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=[],
            theme=gr.themes.Default(font=fonts, font_mono=mono),
        )
        print(f"RDSNet answers on {address} (Ctrl-C ends it).", flush=True)
        if host not in ("127.0.0.1", "localhost", "::1"):
            print("Whoever reaches this machine over the network can use it.", flush=True)
        page.block_thread()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
