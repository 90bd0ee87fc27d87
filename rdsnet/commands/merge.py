"""Take corrected annotations back into the json that was trained on: label, train, correct, again.

CORRECTED is whatever rdsnet reads ('rdsnet convert-data --help' lists it): what comes back from
CVAT, Label Studio, labelme or another tool, files or folders, several if you like. Images that
TRAIN.json has, too, get the corrected objects in the place of all theirs, the others are added. An
image without objects is kept as one; tasks that nobody has annotated in Label Studio are left out.
Classes are matched by name, new ones are added and named. Scores of predictions are dropped.

Where it is not certain which image is meant, or a size differs, nothing is written and a message
says why. No file is ever overwritten.

Examples:
  rdsnet merge train.json corrected.xml --output train_2.json
  rdsnet merge train.json output/uncertain/labelme/ --output train_2.json --images photos/
  rdsnet merge train.json a.json b.json --dry-run --rename 'nucleuss=nucleus'
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path


def renamed(text: str) -> tuple[str, str]:
    """ "OLD=NEW" -> (OLD, NEW); as argparse type."""
    old, equals, new = text.partition("=")
    if not equals or not old.strip() or not new.strip():
        raise argparse.ArgumentTypeError(f"'{text}' is not OLD=NEW, two names of classes")
    return old.strip(), new.strip()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("train", metavar="TRAIN.json", help="the annotations that were trained on")
    parser.add_argument(
        "corrected", nargs="+", metavar="CORRECTED", help="files or folders with corrections"
    )
    parser.add_argument("--output", metavar="OUT.json", help="the json to write; must not exist")
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="folder of all images, to which names in OUT.json are relative (default: that of "
        "TRAIN.json, as found beside it; of corrections where they say, beside them, or there)",
    )
    parser.add_argument(
        "--rename",
        type=renamed,
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="take the class OLD of the corrections for NEW; may be given several times",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would become of it and write nothing"
    )


def run(args: argparse.Namespace) -> None:
    from rdsnet.data.checks import categories_by_id
    from rdsnet.data.coco_json import write_coco_json
    from rdsnet.data.formats import read_export
    from rdsnet.data.merging import merge_corrected

    if not args.output and not args.dry_run:
        raise ValueError("give --output OUT.json, or --dry-run to see what would become of it")
    out = Path(args.output) if args.output else None
    if out and out.exists():
        raise FileExistsError(f"{out} exists already. Choose another name or remove it.")
    train = read_export(args.train, args.images)
    classes = categories_by_id(train.part("train")["categories"], args.train)
    corrected = []
    for path in args.corrected:
        corrected.append(read_export(path, args.images, classes, elsewhere=train.image_root))
        print("\n  ".join(corrected[-1].sentences()))
    merged = merge_corrected(train, corrected, dict(args.rename))
    print("\n".join(merged.lines()))
    if args.dry_run:
        print("Nothing was written (--dry-run).")
        return
    write_coco_json(merged.content, out)
    words = ["rdsnet", "check-data", str(out), train.image_root]
    print(f"Written: {out}. To check it: {shlex.join(words)}")
