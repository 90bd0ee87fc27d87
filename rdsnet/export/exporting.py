"""From a checkpoint to a file for other runtimes: what ``rdsnet export`` does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode

from rdsnet.checkpoint.trained import load_model, names_and_ids, prediction_config
from rdsnet.export import check
from rdsnet.export.decoding import as_objects
from rdsnet.export.files import (
    FORMATS,
    channel_order,
    describe,
    image_dtype,
    parts,
    read,
    require_packages,
    trace,
    write,
)
from rdsnet.export.graph import ImageToObjects, Objects, Size
from rdsnet.modeling import RDSNet
from rdsnet.modeling.folding import fold_norms

SizePair = tuple[Size, Size]
"""(H, W) of an image, and of its results."""

_CANDIDATES = 300


@dataclass
class ExportSummary:
    """What :func:`export` did.

    Attributes:
        path: the file.
        bytes: of it and, for OpenVINO, of the weights beside it.
        size: (H, W) of the images that it takes, pixels; None: any.
        channels: how many they have.
        dtype: "uint8" or "float32".
        order: of photographs, "BGR" or "RGB"; of others, in words.
        max_detections: most objects that it gives.
        class_names: None: unknown.
        outputs: names of what it gives.
        checked: what was compared, in words.
    """

    path: Path
    bytes: int
    size: Size | None
    channels: int
    dtype: str
    order: str
    max_detections: int
    class_names: list[str] | None
    outputs: tuple[str, ...]
    checked: str

    def text(self) -> str:
        height, width = self.size or ("height", "width")
        names = ", ".join(self.class_names or ["unknown"])
        return "\n".join(
            [
                f"Input: image ({self.channels}, {height}, {width}) {self.dtype}, {self.order}",
                f"Output: {', '.join(self.outputs)} of at most {self.max_detections} objects",
                f"Classes: {names if len(names) < 200 else len(self.class_names)}",
                f"Checked: {self.checked}",
                f"Written: {self.path} ({self.bytes / 2**20:.1f} MiB)",
            ]
        )


def export(
    config_file: str | None,
    weights: str,
    output: str | Path,
    *,
    file_format: str | None = None,
    size: tuple[int, int] | None = None,
    max_detections: int | None = None,
    score_threshold: float | None = None,
    compact: bool = False,
    opts: Sequence[str] = (),
    trust_checkpoint: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> ExportSummary:
    """Write a trained model as ONNX, for OpenVINO or for torch.export, and check the file.

    The graph is compared with the model on a made-up image, with as low a score threshold as gives
    objects; then the file with the graph, on images of several sizes.

    Args:
        config_file, weights, opts, trust_checkpoint: as for
            :func:`rdsnet.prediction.pipeline.predict`.
        output: the file; its folder is made if missing.
        file_format: "onnx", "openvino" or "torch"; None: by the ending of ``output``.
        size: (H, W) of the images that the file will take; None: any, or of the model's usual test
            images where it cannot be traced for any (AuthorsCompat).
        max_detections: most objects per image; None: as configured.
        score_threshold: objects below it are dropped; None: as configured.
        compact: the file gives what masks are made from (:class:`~.graph.CompactObjects`).
        progress: called with a line when a longer step begins.

    Raises:
        FileNotFoundError, ValueError: for what is missing or does not fit, and for a model that
            cannot be exported; then nothing is written.
        ModuleNotFoundError: without onnx or onnxscript, for ONNX; for OpenVINO without openvino.
    """
    output = Path(output)
    file_format = file_format or _format_of(output)
    if output.is_dir():
        raise ValueError(f"--output '{output}' is a folder: name a file in it")
    if file_format == "openvino" and output.suffix.lower() != FORMATS[file_format]:
        raise ValueError(
            f"the output '{output}' must end in {FORMATS[file_format]}: OpenVINO reads no other"
        )
    require_packages(file_format)
    settings = ["MODEL.DEVICE", "cpu"]
    if max_detections is not None:
        settings += ["TEST.DETECTIONS_PER_IMAGE", str(max_detections)]
    cfg = prediction_config(config_file, weights, score_threshold, [*opts, *settings])
    progress(f"Loading {weights}")
    model = load_model(cfg, trust_checkpoint)
    fold_norms(model)
    if not isinstance(model, RDSNet):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE '{cfg.MODEL.META_ARCHITECTURE}' cannot be exported: only "
            "RDSNet and what builds on it (FCOS, YOLACT, AuthorsCompat in projects/)"
        )
    model.requires_grad_(False)  # nor will the file's
    class_names, category_ids = names_and_ids(cfg)
    output.parent.mkdir(parents=True, exist_ok=True)

    with torch.no_grad():
        graph = ImageToObjects(model, compact, image_dtype(cfg)).eval()
        compared = check_graph(graph, _made_up_image(graph, size or usual_size(cfg, model)))
        progress("Tracing the model")
        program, size = _trace(graph, size, usual_size(cfg, model), progress)
        texts = describe(cfg, size, class_names, category_ids, compact)
        progress("Writing")
        unchecked = output.with_name(f"{output.stem}.unchecked{output.suffix}")
        files = parts(unchecked, file_format)
        try:
            write(unchecked, program, file_format, texts)
            progress("Checking")
            checked = check_file(unchecked, file_format, graph, sizes_to_check(cfg, graph, size))
            size_on_disk = sum(file.stat().st_size for file in files)
            for file, kept in zip(files, parts(output, file_format)):
                file.replace(kept)
        finally:
            for file in files:
                file.unlink(missing_ok=True)
    return ExportSummary(
        output,
        size_on_disk,
        size,
        graph.channels,
        str(graph.dtype).removeprefix("torch."),
        channel_order(cfg),
        cfg.TEST.DETECTIONS_PER_IMAGE,
        class_names,
        graph.fields,
        f"{compared}; {checked}",
    )


def _format_of(path: Path) -> str:
    """The name of the format that a file's ending stands for."""
    for name, ending in FORMATS.items():
        if path.suffix.lower() == ending:
            return name
    raise ValueError(
        f"the output '{path}' ends in none of {', '.join(FORMATS.values())}: choose one of these "
        f"endings, or on the command line --format {' or --format '.join(FORMATS)}"
    )


def _trace(
    graph: ImageToObjects, size: Size | None, usual: Size, progress: Callable[[str], None]
) -> tuple[torch.export.ExportedProgram, Size | None]:
    """The program, and the size of the images that it takes: the usual one where not any can be."""
    try:
        return trace(graph, size), size
    except ValueError as error:
        if size:
            raise
        height, width = usual
        progress(
            f"{error}: the file will take images of {height} x {width} alone (--size HEIGHT WIDTH "
            "chooses)"
        )
        return trace(graph, usual), usual


def usual_size(cfg: CfgNode, model: RDSNet) -> Size:
    """The (H, W) that a model's test images fit into, which lie across.

    That of the model itself where it resizes all images to one size, as YOLACT does; else
    ``INPUT.MIN_SIZE_TEST`` and ``MAX_SIZE_TEST``, rounded up to what the backbone divides; 384 x
    512 where images keep their own size.
    """
    fixed = getattr(model, "input_size", 0)
    if fixed:
        return fixed, fixed
    short, long = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if short <= 0:
        return 384, 512
    divisor = max(model.size_divisibility, 1)
    return tuple(math.ceil(side / divisor) * divisor for side in (short, max(short, long)))


def sizes_to_check(cfg: CfgNode, graph: ImageToObjects, size: Size | None) -> list[SizePair]:
    """Sizes of images and of their results: the usual one, and an odd upright one for others."""
    height, width = size or usual_size(cfg, graph.model)
    sizes = [((height, width), (height, width))]
    if not size:
        upright = (width * 2 // 3 + 1, height * 2 // 3 - 1)
        sizes.append((upright, upright))
    if graph.takes_output_size:
        image, (height, width) = sizes[-1]
        sizes[-1] = image, (height * 3 // 2, width * 3 // 2 + 1)
    return sizes


def _made_up_image(graph: ImageToObjects, size: Size) -> torch.Tensor:
    return check.made_up_image(size, graph.channels, graph.dtype)


def _model_objects(model: RDSNet, image: torch.Tensor) -> Objects:
    """What the model itself finds in an image (3, H, W)."""
    return check.objects_of(model([{"image": image}])[0]["instances"])


def run_graph(graph: ImageToObjects, image: torch.Tensor, output_size: Size = (0, 0)) -> Objects:
    """What the graph gives, run by PyTorch."""
    size = (torch.tensor(output_size),) if graph.takes_output_size else ()
    return as_objects(graph(image, *size), graph.model.mask_threshold)


def check_graph(graph: ImageToObjects, image: torch.Tensor) -> str:
    """Compare the graph with its model on an image, with as low a threshold as gives objects.

    Returns:
        what agrees, in words.

    Raises:
        ValueError: they differ.
    """
    model, stream = graph.model, graph.model.object_stream
    threshold = stream.score_threshold
    try:
        stream.score_threshold = min(threshold, usable_threshold(graph, image))
        expected, found = _model_objects(model, image), run_graph(graph, image)
    except NotImplementedError as error:
        raise ValueError(
            f"{type(stream).__name__} cannot be exported: it has no method scores(), see "
            "docs/another-detector.md"
        ) from error
    finally:
        stream.score_threshold = threshold
    if not check.enough_agree(expected, found):
        raise ValueError(
            f"{type(model).__name__} with {type(stream).__name__} cannot be exported: "
            f"{_compared('the graph', image, expected, found)}. A class that changes how objects "
            "are found changes detect_padded() too, see docs/another-detector.md"
        )
    return _compared("the graph", image, expected, found) + " at a low score threshold"


def usable_threshold(graph: ImageToObjects, image: torch.Tensor) -> float:
    """A score that :data:`_CANDIDATES` anchor-class pairs of an image exceed."""
    stream = graph.model.object_stream
    _, predictions, _ = graph.predict(image)
    scores = torch.cat(
        [stream.scores(predictions, i).flatten() for i in range(len(predictions.anchors))]
    )
    return float(scores.topk(min(_CANDIDATES, len(scores))).values[-2:].mean())


def check_file(path: Path, file_format: str, graph: ImageToObjects, sizes: list[SizePair]) -> str:
    """The same for the file and the graph, on images of some sizes, with results in others."""
    run = read(path, file_format)
    if run is None:
        return "the file itself is not checked, onnxruntime is not installed"
    compared = []
    for image_size, output_size in sizes:
        image = _made_up_image(graph, image_size)
        expected = run_graph(graph, image, output_size)
        found = as_objects(run(image, output_size), graph.model.mask_threshold)
        compared.append(_compared("the file", image, expected, found))
        if not check.enough_agree(expected, found):
            raise ValueError(
                f"{compared[-1]}, so it is not kept. Please report this with the versions that "
                "'rdsnet doctor' prints"
            )
    return ", ".join(compared) + " at the model's own"


def _compared(name: str, image: torch.Tensor, expected: Objects, found: Objects) -> str:
    agreeing = int(check.agreeing_objects(expected, found).sum())
    height, width = image.shape[1:]
    return (
        f"on a made-up image of {height} x {width} {name} finds {agreeing} of "
        f"{len(expected.scores)} objects"
    )
