"""Exported models that compute their convolutions in 8 bits: ``rdsnet export --int8``.

NNCF chooses the ranges of activations by images like those that the model will see. It changes an
OpenVINO file, so that is written first, checked against the model, and then quantized. What is no
convolution stays in float32, and so do depthwise ones, which are little of the work for the AP that
they cost (docs/export.md).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from detectron2.structures import pairwise_iou

from rdsnet.checkpoint.exported import IR_ENDING, IR_ENTRY, read_texts, weights_of
from rdsnet.checkpoint.trained import prediction_config
from rdsnet.data.channels import Channels
from rdsnet.data.findings import counted
from rdsnet.export import ExportSummary, export
from rdsnet.prediction.exported import ExportedPredictor
from rdsnet.prediction.sources import find_sources

CALIBRATION_IMAGES = 100
"""Of those that are given, at most, evenly spread."""

_COMPARED_IMAGES = 10
_SAME_OBJECT = 0.5  # IoU of boxes
_FEWEST_FOUND = 0.5


def export_int8(
    inputs: Sequence[str | os.PathLike],
    config_file: str | None,
    weights: str,
    output: str | Path,
    *,
    progress: Callable[[str], None] = lambda text: None,
    **options: object,
) -> ExportSummary:
    """:func:`rdsnet.export.export` for OpenVINO, with convolutions in 8 bits.

    Args:
        inputs: images like those that the model will see: files, of which the first page is taken,
            folders and patterns.
        config_file, weights, progress, options: as of :func:`rdsnet.export.export`.
        output: the .xml file; its weights (.bin) come beside it.

    Raises:
        OSError, ValueError: as of :func:`rdsnet.export.export`; there are no images, or one cannot
            be read; the model finds too little of what it did in float32. Then nothing is written.
        ModuleNotFoundError: without openvino or nncf.
    """
    output = Path(output)
    if options.pop("file_format", None) not in (None, "openvino"):
        raise ValueError("--int8 writes OpenVINO's files alone: leave --format out")
    if output.suffix.lower() != IR_ENDING:
        raise ValueError(
            f"--int8 writes OpenVINO's files: the output '{output}' must end in {IR_ENDING}"
        )
    if output.is_dir() or weights_of(output).is_dir():
        raise ValueError(f"--output '{output}' is a folder, or its .bin: name a file")
    if options.get("size"):
        raise ValueError("--int8 needs a file that takes images of any size: leave --size out")
    for name in ("openvino", "nncf"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f"--int8 needs {name}: pip install 'rdsnet[export,int8]'", name=name
            )
    images = _calibration_images(inputs)
    channels = Channels.of(prediction_config(config_file, weights, None, options.get("opts", ())))
    for file_name in images:
        channels.read(file_name, "BGR")  # what cannot be read is said now
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{output.stem}.", dir=output.parent) as folder:
        exact, quantized = (Path(folder) / f"{name}{IR_ENDING}" for name in ("exact", "int8"))
        summary = export(config_file, weights, exact, progress=progress, **options)
        if summary.size:
            raise ValueError(
                f"{weights} takes images of one size alone, and is not calibrated by others: leave "
                "--int8 out"
            )
        progress(f"Calibrating by {counted(len(images), 'image')}")
        quantize(exact, quantized, images)
        progress("Checking")
        checked = _check(exact, quantized, images)
        files = (weights_of(quantized), weights_of(output)), (quantized, output)
        size = sum(source.stat().st_size for source, _ in files)
        for source, target in files:
            source.replace(target)
    return replace(
        summary, path=output, bytes=size, checked=f"{summary.checked}; in 8 bits {checked}"
    )


def _calibration_images(inputs: Sequence[str | os.PathLike]) -> list[str]:
    """Paths, at most :data:`CALIBRATION_IMAGES`, evenly spread.

    Raises:
        FileNotFoundError: an input is missing, or there are only videos, or nothing.
    """
    names = [os.fspath(path) for path in inputs]
    found = [str(s.path) for s in find_sources(names).sources if not s.is_video]
    if not found:
        raise FileNotFoundError(f"--int8: no images in {', '.join(names) or 'an empty list'}")
    return _spread(found, CALIBRATION_IMAGES)


def _spread(paths: Sequence[str], most: int) -> list[str]:
    """So many of them, or all, evenly spread."""
    places = np.linspace(0, len(paths) - 1, min(len(paths), most))
    return [paths[place] for place in places.round().astype(int)]


def quantize(path: Path, output: Path, images: Sequence[str]) -> None:
    """Write an OpenVINO file of ``rdsnet export`` with convolutions in 8 bits.

    Args:
        path: the file in float32.
        output: the new one; it says ``precision: int8`` about itself.
        images: paths.
    """
    os.environ.setdefault("NNCF_CI", "1")  # or NNCF tells its makers that it was used
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)  # it would name every operator that stays as it is
    predictor = _predictor(path)
    model = openvino.Core().read_model(path)
    takes_output_size = len(model.inputs) > 1

    def inputs(file_name: str) -> dict[str, np.ndarray]:
        image = predictor.prepare(predictor.channels.read(file_name, "BGR"))["image"]
        given = {"image": image.to(predictor.model.dtype).numpy()}
        # Masks, which nothing is learnt from here, take no time in a size of one pixel.
        return {**given, "output_size": np.ones(2, np.int64)} if takes_output_size else given

    kinds = {operator.get_type_name() for operator in model.get_ops()}
    quantized = nncf.quantize(
        model,
        nncf.Dataset(images, inputs),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(
            types=sorted(kinds - {"Convolution", "Constant", "Parameter", "Result"}),
            validate=False,  # an If inside has others
        ),
    )
    quantized.set_rt_info(json.dumps({**read_texts(path), "precision": "int8"}), IR_ENTRY)
    try:
        openvino.save_model(quantized, output, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(f"'{output}' cannot be written: {error}") from error


def _predictor(path: Path) -> ExportedPredictor:
    return ExportedPredictor(prediction_config(None, str(path), None, ()))


def _check(exact: Path, quantized: Path, images: Sequence[str]) -> str:
    """Of the objects that a file in float32 finds in some images, how many the other finds.

    Raises:
        ValueError: too few, or there are none to be found.
    """
    some = _spread(images, _COMPARED_IMAGES)
    predictors = _predictor(exact), _predictor(quantized)
    number = same = others = 0
    for file_name in some:
        image = predictors[0].channels.read(file_name, "BGR")
        expected, found = (predictor(image)["instances"] for predictor in predictors)
        overlaps = pairwise_iou(expected.pred_boxes, found.pred_boxes) >= _SAME_OBJECT
        overlaps &= expected.pred_classes[:, None] == found.pred_classes
        number += len(expected)
        same += int(overlaps.any(1).sum())
        others += int((~overlaps.any(0)).sum())
    text = f"{same} of {number} objects in {counted(len(some), 'image')}, and {others} others"
    if not number:
        raise ValueError(
            f"the model finds nothing in {counted(len(some), 'image')} that --int8 names, so there "
            "is nothing to compare: name images with objects, or a lower --score-threshold"
        )
    if same < _FEWEST_FOUND * number:
        raise ValueError(
            f"in 8 bits the model finds {text}, so the file is not kept. Are those images like the "
            "ones that it was trained on? Without --int8 it stays in float32"
        )
    return f"it finds {text}"
