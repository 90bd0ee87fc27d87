"""Open a local page: drop an image, see what the model finds.

Masks, boxes before and after MBRM, and scores, with a slider for the score; what is shown can be
downloaded as COCO json. Images stay on this machine: the page loads nothing from elsewhere and
sends nothing anywhere. It answers this machine only, unless --host says otherwise.

Needs gradio: pip install 'rdsnet[app]'.

Examples:
  rdsnet app --weights output/mine/model_best.pth
  rdsnet app --weights model.pth --config-file config.yaml --port 8000 --max-upload-mb 50
"""

from __future__ import annotations

import argparse

from rdsnet.commands.arguments import (
    add_config_options,
    add_max_detections,
    add_model_arguments,
    add_precision,
    add_upload_limits,
    precision_options,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to answer on; 0.0.0.0: whoever reaches this machine may use the page "
        "(default: 127.0.0.1, this machine alone)",
    )
    parser.add_argument(
        "--port", type=int, metavar="N", help="port (default: the first free one from 7860)"
    )
    add_upload_limits(parser)
    add_max_detections(parser)
    add_precision(parser, "auto", "auto")
    add_config_options(parser, "--opts")


def run(args: argparse.Namespace) -> None:
    from rdsnet.app.page import serve

    serve(
        args.config_file,
        args.weights,
        host=args.host,
        port=args.port,
        max_upload_mb=args.max_upload_mb,
        max_megapixels=args.max_megapixels,
        max_detections=args.max_detections,
        opts=[*precision_options(args), *args.opts],
        trust_checkpoint=args.trust_checkpoint,
    )
