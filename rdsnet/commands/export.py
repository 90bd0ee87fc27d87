"""Write a trained model for other runtimes: ONNX, OpenVINO, or a program of torch.export.

The file takes an image (3, H, W) of any size, uint8, channels in the order of INPUT.FORMAT (BGR
unless changed), and gives boxes (after MBRM), regressed_boxes (before), scores, classes and masks
(N, H, W) of its N objects, in pixels of that image or of an output_size. Normalisation, padding,
NMS, masks and MBRM are inside; so are the names of the classes. What the file finds is compared
with the model before it is kept. docs/export.md has a program that uses it; rdsnet predict and
rdsnet eval take an ONNX or OpenVINO file as --weights.

ONNX needs onnx and onnxscript: pip install 'rdsnet[export]'. An ending .xml writes OpenVINO's
files, FILE.xml and FILE.bin, which belong together: pip install 'rdsnet[export,openvino]'.

--int8 photos/ writes OpenVINO's files with convolutions in 8 bits, quantized by NNCF to images
like those that the model will see: pip install 'rdsnet[export,int8]'. What that costs, 'rdsnet
eval' tells.

Examples:
  rdsnet export --weights output/mine/model_best.pth --output model.onnx
  rdsnet export --weights output/mine/model_best.pth --output model.pt2 --size 480 640
  rdsnet export --weights output/mine/model_best.pth --output model.xml
  rdsnet export --weights nuclei --output nuclei.onnx --compact
  rdsnet export --weights nuclei --output nuclei_int8.xml --int8 my_images/
  rdsnet export --config-file output/mine/config.yaml --weights output/mine/model_final.pth \\
      --output model.onnx --max-detections 20 --score-threshold 0.3
"""

from __future__ import annotations

import argparse
from functools import partial

from rdsnet.commands.arguments import add_config_options, add_model_arguments, positive, score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="file to write (.onnx, .xml or .pt2)"
    )
    parser.add_argument(
        "--format",
        choices=("onnx", "openvino", "torch"),
        help="onnx, openvino, or torch: a program of torch.export (default: by the ending of "
        "--output)",
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=positive(int),
        metavar=("HEIGHT", "WIDTH"),
        help="of the images that the file takes, pixels (default: it takes any size)",
    )
    parser.add_argument(
        "--compact",
        action="store_true",
        help="give what masks are made from instead of masks; docs/export.md has the decoder",
    )
    parser.add_argument(
        "--int8",
        nargs="+",
        metavar="IMAGES",
        help="convolutions in 8 bits, their ranges chosen by these images, folders or patterns "
        "(.xml only)",
    )
    parser.add_argument(
        "--max-detections",
        type=positive(int),
        metavar="N",
        help="at most so many objects per image (default: TEST.DETECTIONS_PER_IMAGE)",
    )
    parser.add_argument(
        "--score-threshold",
        type=score,
        metavar="P",
        help="leave out objects with a lower score (default: MODEL.RETINANET.SCORE_THRESH_TEST, "
        "0.05 unless changed)",
    )
    add_config_options(parser, "--opts")


def run(args: argparse.Namespace) -> None:
    from rdsnet.export import export
    from rdsnet.prediction.quantizing import export_int8

    write = partial(export_int8, args.int8) if args.int8 else export
    summary = write(
        args.config_file,
        args.weights,
        args.output,
        file_format=args.format,
        size=tuple(args.size) if args.size else None,
        compact=args.compact,
        max_detections=args.max_detections,
        score_threshold=args.score_threshold,
        opts=args.opts,
        trust_checkpoint=args.trust_checkpoint,
        progress=lambda text: print(f"{text} ...", flush=True),
    )
    print(summary.text())
