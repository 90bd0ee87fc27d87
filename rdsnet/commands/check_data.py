"""Check annotations in COCO format and their images before training on them.

Reported are problems that would stop training (missing, unreadable or differently sized images,
unknown categories, boxes without area or outside the image, broken polygons or RLE, ids that occur
twice) and what would spoil it (masks that don't match their boxes, images without objects, rare
classes, classes of one name, tiny objects, crowds and holes that may be none, one photograph under
two ids), with counts and the first of each; then numbers, and how input and anchors of a config fit
the objects. A contact sheet shows images with their masks.

--fix OUT.json writes a repaired copy: what can be known is corrected (an image's size from its
file, a box from its mask, a file name that one file of the folder fits), what cannot is left out.
The input itself is never changed. What only you can know is changed when you say so:
--crowds-are-objects (brush masks of CVAT are exported as crowds, which training leaves out) and
--inner-polygons-are-holes (some exporters write a hole as one more polygon).

Exit status: 1 when training would fail (with --fix: with the repaired copy), otherwise 0.

Examples:
  rdsnet check-data annotations.json photos/
  rdsnet check-data annotations.json photos/ --fix repaired.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

# What --fix is to do beside what is beyond doubt.
FIX_OPTIONS = {
    "--crowds-are-objects": "make every crowd (iscrowd 1) an object",
    "--inner-polygons-are-holes": "cut polygons that lie inside another of the same object out of "
    "it; it is written as RLE",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("json", metavar="JSON", help="annotations in COCO's format")
    parser.add_argument("images", metavar="IMAGES", help="folder that 'file_name' is relative to")
    parser.add_argument("--fix", metavar="OUT", help="write a repaired copy of the json")
    for option, text in FIX_OPTIONS.items():
        parser.add_argument(option, action="store_true", help=f"with --fix: {text}")
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
    from rdsnet.data.findings import first_of
    from rdsnet.data.repair import check_target
    from rdsnet.engine.check_data import check_data, draw_sheet, repair, report_text
    from rdsnet.engine.own_data import base_config

    wanted = {option: getattr(args, option[2:].replace("-", "_")) for option in FIX_OPTIONS}
    alone = [option for option, is_given in wanted.items() if is_given and not args.fix]
    if alone:
        raise ValueError(f"{', '.join(alone)} can only be given together with --fix OUT.json")
    name, cfg = base_config(args.config)
    if args.fix and Path(args.json).exists():
        check_target(args.json, args.fix)  # now and not after minutes of reading images
    how = {
        "read_images": not args.no_images,
        "crowds_are_objects": cfg.DATASETS.CROWDS_ARE_OBJECTS,
    }
    check = check_data(args.json, args.images, **how)
    print(report_text(check, cfg, name))
    if args.fix:
        done, left_out = repair(
            args.json,
            args.images,
            args.fix,
            check.sizes,
            read_images=not args.no_images,
            crowds_are_objects=args.crowds_are_objects or cfg.DATASETS.CROWDS_ARE_OBJECTS,
            inner_polygons_are_holes=args.inner_polygons_are_holes,
        )
        print(f"\nRepaired copy: {args.fix}")
        print("\n".join(f"  {number:>6} {what}" for what, number in done.items()) or "  as it was")
        if left_out:
            print(f"Images left out: {first_of(left_out, 20)}")
        check = check_data(args.fix, args.images, sizes=check.sizes, **how)
        print(f"\n{report_text(check, cfg, name)}")
    if not args.no_images:
        sheet = args.sheet or Path("output", "check-data", Path(check.json_file).stem + ".png")
        if draw_sheet(check, args.images, sheet):
            print(f"Contact sheet: {sheet}")
    return 0 if check.trainable else 1
