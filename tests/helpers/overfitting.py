"""The small model learns four photographs by heart: shared by the tests of all object streams.

If gradients, targets, masks and evaluation did not agree, it could not.
"""

import json
import os
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

from rdsnet.cli import main as rdsnet_command
from rdsnet.training import main

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "quick_schedules" / "rdsnet_small_overfit.yaml"
IMAGES = [184791, 219578, 289393, 308394]
OBJECTS = 19  # of 13 classes, none of them a crowd

needs_photographs = pytest.mark.skipif(
    "RDSNET_DATA" not in os.environ, reason="RDSNET_DATA names no data folder"
)


def overfit(folder: Path, *opts: str, config_file: Path = CONFIG) -> dict[str, dict[str, float]]:
    """Train on four photographs of tiny_coco and evaluate on the same ones.

    Args:
        folder: for the json and the output.
        opts: config options KEY VALUE.
        config_file: any that DATASETS.COCO_FILES and the schedule can be added to.

    Returns:
        The evaluator's results: ``results["segm"]["AP"]``, ``["bbox"]``, ``["bbox_regressed"]``.
    """
    tiny_coco = Path(os.environ["RDSNET_DATA"]) / "tiny_coco"
    few = folder / "few.json"
    source = tiny_coco / "annotations" / "instances_val2017.json"
    assert write_subset(source, IMAGES, few) == OBJECTS
    # A name stands for one json in a process, and several tests may run in this one.
    name = f"few_{folder.parent.name}_{folder.name}"
    arguments = ["--config-file", str(config_file), "OUTPUT_DIR", str(folder / "output")]
    arguments += ["DATASETS.COCO_FILES", str([[name, str(few), str(tiny_coco / "val2017")]])]
    arguments += ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)"]
    arguments += ["SEED", "1", *opts]
    return main(default_argument_parser().parse_args(arguments))


def assert_learns(folder: Path, *opts: str, iterations: int) -> Path:
    """The model learns the photographs by heart: it is right about most of them.

    That is, AP above 50 for boxes and masks, while of photographs that it has not seen a model of
    four knows nothing. How long that takes is left to the processor, whose roundings a training
    multiplies: it may take twice and four times as long.

    Args:
        iterations: of the first training.

    Returns:
        the folder of the training, as given to :func:`overfit`.
    """
    tried = {}
    for length in (iterations, 2 * iterations, 4 * iterations):
        own = folder / f"{length}"
        own.mkdir()
        steps = f"({length * 6 // 10}, {length * 8 // 10})"
        schedule = ["SOLVER.MAX_ITER", str(length), "SOLVER.STEPS", steps]
        results = overfit(own, *opts, *schedule)
        tried[length] = {task: results[task]["AP"] for task in ("bbox", "segm")}
        if min(tried[length].values()) > 50:
            return own
    raise AssertionError(f"AP after so many iterations: {tried}")


def assert_mbrm_can_be_fitted(folder: Path) -> None:
    """``rdsnet fit-mbrm`` finds the model's masks and learns from them; ``folder`` as above."""
    output = folder / "output"
    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    fit = ["fit-mbrm", "--config-file", str(output / "config.yaml"), *weights]
    assert rdsnet_command([*fit, "MODEL.RDSNET.MBRM.FIT.MAX_ITER", "100"]) in (0, None)
    kernel = json.loads((output / "mbrm" / "kernel.json").read_text())
    assert kernel["objects"] > OBJECTS / 2 and kernel["loss"] < kernel["loss_prior"]


def write_subset(source: Path, image_ids: list[int], target: Path) -> int:
    """Write the given images, their annotations and the classes in use; return the objects."""
    content = json.loads(source.read_text())
    annotations = [a for a in content["annotations"] if a["image_id"] in image_ids]
    used = {a["category_id"] for a in annotations}
    subset = {
        "images": [i for i in content["images"] if i["id"] in image_ids],
        "annotations": annotations,
        "categories": [c for c in content["categories"] if c["id"] in used],
    }
    target.write_text(json.dumps(subset))
    return len(annotations)
