"""How fast RDSNet is with other heads: on speed alone, with random weights.

    python benchmarks/models/heads.py

As shipped (rdsnet/modeling/inference.py), in turn on one thread, by CPU time. The heads: the
config's own; one tower for all three branches; half the convolutions; none of the normalisation.
What a head costs in quality is not asked here.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
from detectron2.modeling import build_model

from rdsnet import model_zoo
from rdsnet.benchmark import measure
from rdsnet.benchmark.models import (
    Settings,
    calibrate_alone,
    inference_call,
    make_batch,
    scale_residuals,
)
from rdsnet.modeling import prepare_for_inference

MODELS = {
    "R-50": ("COCO-InstanceSegmentation/rdsnet_R_50_FPN_1x.yaml", 800, 4),
    "lite": ("lite/rdsnet_lite0_96.yaml", 512, 2),
}  # config, px, convolutions per tower


def heads(convolutions: int) -> dict[str, list]:
    """{head: config options}."""
    fewer = convolutions // 2
    return {
        f"own: 3 towers of {convolutions}, GroupNorm": [],
        "shared tower": ["MODEL.RDSNET.SHARED_TOWER", True],
        f"3 towers of {fewer}": ["MODEL.RETINANET.NUM_CONVS", fewer],
        "no normalisation": ["MODEL.RETINANET.NORM", ""],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--size", type=int, metavar="PX", help="default: 800 for R-50, 512 lite")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    facts = measure.describe_machine("cpu")
    print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()) + "\n")
    print("| model | head | float32, ms | bf16, ms | of the own head's time: float32 | bf16 |")
    print("| --- " * 6 + "|")
    for name in args.models:
        config, size, convolutions = MODELS[name]
        settings = Settings("cpu", "float32", 50, args.size or size, 1, 1, args.rounds)
        batch, calls = make_batch(settings), {}
        for head, options in heads(convolutions).items():
            cfg = model_zoo.get_config(config)
            cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.RDSNET.DENSE_MASKS = "cpu", "", False
            cfg.MODEL.RETINANET.NUM_CLASSES = max(cfg.MODEL.RETINANET.NUM_CLASSES, 1)
            cfg.merge_from_list(options)
            torch.manual_seed(0)
            model = build_model(cfg)
            scale_residuals(model)
            model = prepare_for_inference(model)
            calibrate_alone(model, batch, settings)
            for dtype in ("float32", "bfloat16"):
                calls[head, dtype] = inference_call(model, batch, replace(settings, dtype=dtype))
        rounds = (args.rounds, args.rounds)
        times = measure.alternate(calls, "cpu", 0, rounds, time.process_time)
        own = next(iter(heads(convolutions)))
        for head in heads(convolutions):
            least = [times[head, dtype]["min_ms"] for dtype in ("float32", "bfloat16")]
            shares = [ms / times[own, d]["min_ms"] for ms, d in zip(least, ("float32", "bfloat16"))]
            cells = [name, head, *(f"{ms:.0f}" for ms in least), *(f"{x:.2f}" for x in shares)]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
