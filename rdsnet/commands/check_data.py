"""Check annotations in COCO format and their images before training on them.

Reported are problems that would stop training (missing, unreadable or differently sized images,
unknown categories, boxes without area or outside the image, broken polygons or RLE, ids that occur
twice) and what would spoil it (masks that don't match their boxes, images without objects, rare
classes, tiny objects), with counts and the first of each; then numbers, and how input and anchors
of a config fit the objects. A contact sheet shows images with their masks.

Values in another form than COCO's that mean one thing only (640.0 or "640" for 640, points [x, y]
for polygons) are named, and read as that, in training too.

--fix OUT.json writes a repaired copy: what can be known is corrected (a box from its mask, the size
of an image where the coordinates prove which of declaration and file is right), what cannot is left
out. --scale-coordinates keeps images that were resized after annotation, with their coordinates
scaled by the factor that both sides have in common. The input itself is never changed.

Exit status: 1 when training would fail (with --fix: with the repaired copy), otherwise 0.

Examples:
  rdsnet check-data annotations.json photos/
  rdsnet check-data annotations.json photos/ --fix repaired.json
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("json", metavar="JSON", help="annotations in COCO's format")
    parser.add_argument("images", metavar="IMAGES", help="folder that 'file_name' is relative to")
    parser.add_argument("--fix", metavar="OUT", help="write a repaired copy of the json")
    parser.add_argument(
        "--scale-coordinates",
        action="store_true",
        help="with --fix: images that are a multiple of the declared size were resized after "
        "annotation; scale their polygons, boxes and masks",
    )
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
    from rdsnet.engine.check_data import check_data, draw_sheet, repair, report_text
    from rdsnet.engine.own_data import base_config

    if args.scale_coordinates and not args.fix:
        raise ValueError("--scale-coordinates changes what --fix OUT writes: give both")
    name, cfg = base_config(args.config)
    if args.fix and Path(args.json).exists():
        check_target(args.json, args.fix)  # now and not after minutes of reading images
    check = check_data(args.json, args.images, read_images=not args.no_images)
    print(report_text(check, cfg, name))
    if args.fix:
        done = repair(
            args.json,
            args.images,
            args.fix,
            check.sizes,
            scale_coordinates=args.scale_coordinates,
        )
        print(f"\nRepaired copy: {args.fix}")
        print("\n".join(done.lines()) or "  as it was")
        check = check_data(args.fix, args.images, read_images=not args.no_images, sizes=check.sizes)
        print(f"\n{report_text(check, cfg, name)}")
    if not args.no_images:
        sheet = args.sheet or Path("output", "check-data", Path(check.json_file).stem + ".png")
        if draw_sheet(check, args.images, sheet):
            print(f"Contact sheet: {sheet}")
    return 0 if check.trainable else 1
