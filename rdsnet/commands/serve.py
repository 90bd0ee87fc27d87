"""Answer over HTTP: post an image, get its objects as COCO json or GeoJSON, or a picture.

POST /predict takes an image as the body or as a file of a form, and the parameters score_threshold,
classes and format. /docs explains it, /openapi.json does to programs, /health and /metrics
(Prometheus) tell how it is. Requests that come together are computed one after the other, or in
batches; whoever finds too many waiting gets 503 and the seconds after which to try again. It
answers this machine only, unless --host says otherwise. Ctrl-C or SIGTERM ends it when those who
wait have their answer.

Needs FastAPI and more: pip install 'rdsnet[serve]'.

Examples:
  rdsnet serve --weights nuclei
  curl -F image=@cells.png 'http://127.0.0.1:8000/predict?score_threshold=0.6' > cells.json
  curl --data-binary @cells.png 'http://127.0.0.1:8000/predict?format=png' > overlay.png
"""

from __future__ import annotations

import argparse

from rdsnet.commands.arguments import (
    add_config_options,
    add_max_detections,
    add_model_arguments,
    add_precision,
    add_upload_limits,
    positive,
    precision_options,
    score,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to answer on; 0.0.0.0: whoever reaches this machine may use the service "
        "(default: 127.0.0.1, this machine alone)",
    )
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N", help="port; 0: a free one (default: 8000)"
    )
    add_upload_limits(parser)
    parser.add_argument(
        "--max-upload-seconds",
        type=positive(float),
        default=60.0,
        metavar="S",
        help="refuse files that take longer to come (default: 60)",
    )
    parser.add_argument(
        "--max-waiting",
        type=positive(int),
        default=128,
        metavar="N",
        help="requests that wait or are under way at most; more get 503 (default: 128)",
    )
    parser.add_argument(
        "--lowest-score",
        type=score,
        default=0.05,
        metavar="P",
        help="requests may ask for objects from this score on; a higher one is faster (default: "
        "0.05)",
    )
    add_max_detections(parser)
    parser.add_argument(
        "--batch-size",
        type=positive(int),
        metavar="N",
        help="images that the model sees at once, if they wait and have one size once resized "
        "(default: 1 on a CPU, 4 on a GPU)",
    )
    add_precision(parser, "auto", "auto")
    add_config_options(parser, "--opts")


def run(args: argparse.Namespace) -> None:
    from rdsnet.serve.server import serve

    serve(
        args.config_file,
        args.weights,
        host=args.host,
        port=args.port,
        max_upload_mb=args.max_upload_mb,
        max_upload_seconds=args.max_upload_seconds,
        max_megapixels=args.max_megapixels,
        max_waiting=args.max_waiting,
        lowest_score=args.lowest_score,
        max_detections=args.max_detections,
        batch_size=args.batch_size,
        opts=[*precision_options(args), *args.opts],
        trust_checkpoint=args.trust_checkpoint,
    )
