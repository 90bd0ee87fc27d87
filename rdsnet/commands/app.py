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


def positive(text: str) -> float:
    """A number above 0; as argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="checkpoint (.pth or .pkl)"
    )
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="yaml config file (default: the config in the checkpoint, or config.yaml beside it)",
    )
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
    parser.add_argument(
        "--max-upload-mb",
        type=positive,
        default=20.0,
        metavar="MB",
        help="refuse larger files (default: 20)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=positive,
        default=50.0,
        metavar="MP",
        help="refuse images of more pixels (default: 50)",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config options to change, after all other arguments",
    )


def run(args: argparse.Namespace) -> None:
    from rdsnet.engine.app import serve

    serve(
        args.config_file,
        args.weights,
        host=args.host,
        port=args.port,
        max_upload_mb=args.max_upload_mb,
        max_megapixels=args.max_megapixels,
        opts=args.opts,
    )
