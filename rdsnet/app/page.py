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

from rdsnet.checkpoint.trained import prediction_config
from rdsnet.data.datasets import class_metadata
from rdsnet.data.image_formats import pillow_formats
from rdsnet.data.images import ImageFile
from rdsnet.data.pixels import RefusedError
from rdsnet.evaluation import instances_to_coco_json
from rdsnet.evaluation.thresholds import DEFAULT_SCORE
from rdsnet.formatting import decimal
from rdsnet.prediction.exported import build_predictor
from rdsnet.prediction.pipeline import predict_image
from rdsnet.prediction.thresholds import ScoreThresholds
from rdsnet.visualization import draw_objects, objects_from_results
from rdsnet.visualization.objects import class_name

if TYPE_CHECKING:
    import gradio as gr

# What is opened here, from whoever reaches the page: the most usual of what can be read.
_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_LOWEST_SCORE = 0.05
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


class Finder:
    """The model, and what it is allowed to be given.

    Args:
        config_file, weights, opts: as in :func:`rdsnet.checkpoint.trained.prediction_config`.
        max_megapixels: images of more pixels are refused.
        trust_checkpoint: as of :class:`~rdsnet.prediction.Predictor`.
        max_detections: objects per image; None: as configured.
    """

    def __init__(
        self,
        config_file: str | None,
        weights: str,
        max_megapixels: float,
        opts: Sequence[str] = (),
        trust_checkpoint: bool = False,
        max_detections: int | None = None,
    ) -> None:
        cfg = prediction_config(config_file, weights, None, opts, max_detections)
        self.thresholds = ScoreThresholds.chosen(cfg)
        self.lowest_score = min(_LOWEST_SCORE, self.thresholds.lowest)
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = self.lowest_score
        self.predictor = build_predictor(cfg, trust_checkpoint)
        self.class_names, self.category_ids = class_metadata(cfg)
        self.max_megapixels = max_megapixels

    def find(self, path: str | Path) -> Found:
        """Raises ValueError, in words for the person at the browser."""
        path = Path(path)
        pixels, pages = self._read(path)
        instances = predict_image(self.predictor, pixels, self.lowest_score)
        results = instances_to_coco_json(instances, image_id=1)
        results.sort(key=lambda result: -result["score"])
        return Found(path.name, pixels[:, :, ::-1], results, self.predictor.was_cut_off, pages)

    def _read(self, path: Path) -> tuple[np.ndarray, int]:
        """The first page, (H, W, 3) uint8 BGR, and the number of pages."""
        formats = [name for name in _FORMATS if name in (*pillow_formats(), "TIFF")]
        try:
            file = ImageFile(str(path), formats)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"'{path.name}' is not an image that can be read ({', '.join(formats)})."
            ) from error
        with file:
            try:
                megapixels = file.pixels() / 1e6
                if megapixels <= self.max_megapixels:
                    return file.read("BGR"), len(file)
            except RefusedError as error:
                raise ValueError(f"'{path.name}' {error.__cause__}") from error
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"'{path.name}' cannot be read: it is damaged or cut off."
                ) from error
        raise ValueError(
            f"'{path.name}' has {megapixels:.1f} megapixels; at most {self.max_megapixels:g} are "
            "taken. Make it smaller, or start the page with a larger --max-megapixels."
        )

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
        height, width = found.image.shape[:2]
        annotations = []
        for result in chosen(found, score):
            annotation = {"id": len(annotations) + 1, **result, "iscrowd": 0}
            annotation["category_id"] = self.category_ids[result["category_id"]]
            annotation["area"] = int(coco_mask.area(result["segmentation"]))
            annotations.append(annotation)
        return {
            "images": [{"id": 1, "file_name": found.name, "height": height, "width": width}],
            "categories": [
                {"id": id_, "name": class_name(self.class_names, k)}
                for k, id_ in enumerate(self.category_ids)
            ],
            "annotations": annotations,
        }


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
