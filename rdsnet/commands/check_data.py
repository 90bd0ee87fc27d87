"""Check annotations in COCO format and their images before training on them.

Reported are problems that would stop training (missing, unreadable or differently sized images,
unknown categories, boxes without area or outside the image, broken polygons or RLE, ids that occur
twice) and what would spoil it (masks that don't match their boxes, images without objects, rare
classes, classes of one name, tiny objects, crowds and holes that may be none, one photograph under
two ids), with counts and the first of each; then numbers, and how input and anchors of a config fit
the objects. A contact sheet shows images with their masks.

Values in another form than COCO's that mean one thing only (640.0 or "640" for 640, points [x, y]
for polygons) are named, and read as that, in training too.

--fix OUT.json writes a repaired copy: what can be known is corrected (a box from its mask, the size
of an image where the coordinates prove which of declaration and file is right, a file name that one
file of the folder fits), what cannot is left out. What only you can know is changed when you say
so: --scale-coordinates (images were resized after annotation; their coordinates are scaled by the
factor that both sides have in common), --crowds-are-objects (CVAT exports brush masks as crowds,
which training leaves out) and --inner-polygons-are-holes (some exporters write a hole as one more
polygon). The input itself is never changed.

Exit status: 1 when training would fail (with --fix: with the repaired copy), otherwise 0.

Examples:
  rdsnet check-data annotations.json photos/
  rdsnet check-data annotations.json photos/ --fix repaired.json
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

# What --fix may do beside what is beyond doubt, if the user says so; --scale-coordinates and so on.
_FIX_OPTIONS = {
    "scale_coordinates": "images that are a multiple of the declared size were resized after "
    "annotation; scale their polygons, boxes and masks",
    "crowds_are_objects": "make every crowd (iscrowd 1) an object",
    "inner_polygons_are_holes": "cut polygons that lie inside another of the same object out of "
    "it; it is written as RLE",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("json", metavar="JSON", help="annotations in COCO's format")
    parser.add_argument("images", metavar="IMAGES", help="folder that 'file_name' is relative to")
    parser.add_argument("--fix", metavar="OUT", help="write a repaired copy of the json")
    for name, text in _FIX_OPTIONS.items():
        parser.add_argument(_option(name), action="store_true", help=f"with --fix: {text}")
    parser.add_argument(
        "--sheet",
        metavar="PNG",
        help="where to write the contact sheet (default: output/check-data/NAME.png)",
    )
    parser.add_argument(
        "--no-images",
        action="store_true",
        help="don't read the images (only look whether they exist), and draw no contact sheet",
    )
    parser.add_argument(
        "--config",
        metavar="NAME",
        help="config that input and anchors are compared with, as of 'rdsnet train --config'",
    )


def run(args: argparse.Namespace) -> int:
    from rdsnet.data.repair import check_target
    from rdsnet.reports.data_check import check_data, draw_sheet, repair, report_text
    from rdsnet.training.base import base_config
    from rdsnet.training.settings import fitting_notes

    wanted = {name: getattr(args, name) for name in _FIX_OPTIONS}
    if any(wanted.values()) and not args.fix:
        alone = ", ".join(_option(name) for name, is_given in wanted.items() if is_given)
        raise ValueError(f"{alone} can only be given together with --fix OUT.json")
    name, cfg = base_config(args.config)
    if args.fix and Path(args.json).exists():
        check_target(args.json, args.fix)  # now and not after minutes of reading images
    crowds_are_objects = cfg.DATASETS.CROWDS_ARE_OBJECTS
    wanted["crowds_are_objects"] |= crowds_are_objects
    how = {"read_images": not args.no_images, "crowds_are_objects": crowds_are_objects}
    check = check_data(args.json, args.images, **how)
    print(report_text(check, name, partial(fitting_notes, cfg)))
    if args.fix:
        read = not args.no_images
        done = repair(args.json, args.images, args.fix, check.sizes, read_images=read, **wanted)
        print(f"\nRepaired copy: {args.fix}")
        print("\n".join(done.lines()) or "  as it was")
        check = check_data(args.fix, args.images, sizes=check.sizes, **how)
        print(f"\n{report_text(check, name, partial(fitting_notes, cfg))}")
    if not args.no_images:
        sheet = args.sheet or Path("output", "check-data", Path(check.json_file).stem + ".png")
        if draw_sheet(check, args.images, sheet):
            print(f"Contact sheet: {sheet}")
    return 0 if check.trainable else 1


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
