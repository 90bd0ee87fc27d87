"""Fit the boundary refinement (MBRM) of a trained model: 2 s + 2 numbers, all else frozen.

The model is run once over DATASETS.TRAIN, then the kernel is fitted in seconds. OUTPUT_DIR/mbrm
gets the checkpoint with the fitted kernel, model_final.pth, and a config.yaml to use it with. The
same command after an interruption goes on where it stopped. Without --config-file, the checkpoint's
own config is used.

Keys: MODEL.RDSNET.MBRM.GAMMA, .MIN_SIGMA, .RADIUS, .READOUT, and .FIT.* for the schedule.

Examples:
  rdsnet fit-mbrm --weights output/mine/model_best.pth OUTPUT_DIR output/fitted
  rdsnet fit-mbrm --config-file output/mine/config.yaml MODEL.WEIGHTS output/mine/model_final.pth
  rdsnet fit-mbrm --config-file output/mine/config.yaml --compare --sweep \\
      MODEL.WEIGHTS output/mine/model_final.pth
  rdsnet eval --config-file output/mine/mbrm/config.yaml
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rdsnet.checkpoint.trust import add_trust_argument
from rdsnet.commands.arguments import add_config_options, add_weights, use_weights

if TYPE_CHECKING:
    from rdsnet.fitting.fit import KernelFit
    from rdsnet.modeling import MBRM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="config of the trained model"
    )
    add_weights(parser)
    parser.add_argument(
        "--compare",
        action="store_true",
        help="evaluate boxes as regressed, enclosing rectangles of the masks, and MBRM with either "
        "read-out on DATASETS.TEST (Table 4 of the paper)",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="evaluate a grid of gamma and radius s on DATASETS.TEST (Fig. 5 of the paper)",
    )
    add_trust_argument(parser)
    add_config_options(parser)


def run(args: argparse.Namespace) -> None:
    import logging

    from detectron2.utils.logger import setup_logger

    from rdsnet.checkpoint.configs import load_config
    from rdsnet.data.datasets import check_num_classes
    from rdsnet.fitting.fit import fit_mbrm, output_folder
    from rdsnet.fitting.study import compare_methods, methods_table, sweep, sweep_table
    from rdsnet.modeling.mbrm import PUBLISHED_KERNEL
    from rdsnet.visualization.mbrm import plot_kernels, plot_sweep

    use_weights(args)
    cfg = load_config(args.config_file, args.opts)
    check_num_classes(cfg)
    if (args.compare or args.sweep) and not cfg.DATASETS.TEST:
        raise ValueError("--compare and --sweep evaluate on DATASETS.TEST, which is empty")
    setup_logger(name="rdsnet")
    setup_logger(name="fvcore").setLevel(logging.WARNING)
    mbrm, fit = fit_mbrm(cfg, args.trust_checkpoint)
    folder = output_folder(cfg)
    print(_report(fit, mbrm))
    if fit.choice:
        print(fit.choice.text())
    kernels = {"fitted": fit.weight}
    if len(fit.weight) == len(PUBLISHED_KERNEL[0]):
        kernels["published"] = list(PUBLISHED_KERNEL[0])
    plot_kernels(kernels, folder / "kernel.png")
    for name in cfg.DATASETS.TEST:
        if args.compare:
            results = compare_methods(cfg, mbrm, name)
            _write(folder / f"methods-{name}", results, methods_table(results))
        if args.sweep:
            results = sweep(cfg, name)
            _write(folder / f"sweep-{name}", results, sweep_table(results))
            plot_sweep(results, folder / f"sweep-{name}.png")
    print(f"\nCheckpoint: {folder / 'model_final.pth'}")
    print(f"Use it:     rdsnet eval --config-file {folder / 'config.yaml'}")


def _report(fit: KernelFit, mbrm: MBRM) -> str:
    """The fitted kernel beside the one that MBRM starts with."""
    from rdsnet.modeling import MBRM

    initial = MBRM(mbrm.gamma, mbrm.radius)
    lines = [
        f"{fit.objects} objects, {fit.edges_within_reach} of {fit.edges} edges within reach of the "
        "prior",
        f"regressed edges are off by {fit.edge_spread:.3f} of their box's side (gamma is "
        f"{mbrm.gamma:g})",
        "",
        "pixel     initial    fitted",
    ]
    weights = zip(initial.weight.flatten().tolist(), fit.weight)
    for offset, (before, after) in enumerate(weights, start=-mbrm.radius):
        lines.append(f"{offset:+5d}  {before:10.4f}{after:10.4f}")
    lines.append(f" bias  {initial.bias.item():10.4f}{fit.bias:10.4f}")
    lines.append(
        f" loss  {fit.loss_initial:10.4f}{fit.loss:10.4f}   (prior alone {fit.loss_prior:.4f})"
    )
    return "\n".join(lines)


def _write(path: Path, results: dict, table: str) -> None:
    """Results for programs (.json) and people (.md, and on the screen)."""
    path.with_name(path.name + ".json").write_text(json.dumps(results, indent=2) + "\n")
    path.with_name(path.name + ".md").write_text(table + "\n")
    print(f"\n{table}")
