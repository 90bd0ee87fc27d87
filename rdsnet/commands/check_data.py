"""Check annotations and their images before training on them.

Annotations are COCO's json, or what another tool has exported ('rdsnet convert-data --help' lists
them): that is converted to output/check-data/NAME.json, one for each part (train, val, test), which
the messages then speak of.

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
  rdsnet check-data labelme_folder/
  rdsnet check-data annotations.json photos/ --show-augmentations seen.png --augment strong
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rdsnet.commands.arguments import add_augment
from rdsnet.commands.convert_data import part_files

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from rdsnet.data.formats import Export
    from rdsnet.reports.data_check import DataCheck

# Where pictures and converted annotations are written.
_FOLDER = Path("output", "check-data")
# What --fix may do beside what is beyond doubt, if the user says so; --scale-coordinates and so on.
_FIX_OPTIONS = {
    "scale_coordinates": "images that are a multiple of the declared size were resized after "
    "annotation; scale their polygons, boxes and masks",
    "crowds_are_objects": "make every crowd (iscrowd 1) an object",
    "inner_polygons_are_holes": "cut polygons that lie inside another of the same object out of "
    "it; it is written as RLE",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "annotations",
        metavar="ANNOTATIONS",
        help="a json of COCO, or a file or folder that 'rdsnet convert-data' reads",
    )
    parser.add_argument(
        "images",
        nargs="?",
        metavar="IMAGES",
        help="folder of the images, which 'file_name' is relative to (default: where the export "
        "says, or beside it)",
    )
    parser.add_argument("--fix", metavar="OUT", help="write a repaired copy of the json")
    for name, text in _FIX_OPTIONS.items():
        parser.add_argument(_option(name), action="store_true", help=f"with --fix: {text}")
    parser.add_argument(
        "--sheet",
        metavar="PNG",
        help="where to write the contact sheet (default: output/check-data/NAME.png)",
    )
    parser.add_argument(
        "--show-augmentations",
        metavar="PNG",
        help="draw what training will see of a few images here: cropped, turned and varied as "
        "'rdsnet train --data' decides, or --augment says",
    )
    add_augment(parser)
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
    from rdsnet.data.formats import read_export
    from rdsnet.data.repair import check_target

    alone = [_option(name) for name in _FIX_OPTIONS if getattr(args, name)]
    if alone and not args.fix:
        raise ValueError(f"{', '.join(alone)} can only be given together with --fix OUT.json")
    export = read_export(args.annotations, args.images)
    fixes = part_files(args.fix, export.parts) if args.fix else {}
    for fix in fixes.values():
        check_target(args.annotations, fix)  # now and not after minutes of reading images
    if args.augment and not args.show_augmentations:
        raise ValueError("--augment can only be given together with --show-augmentations PNG")
    sheets = part_files(args.sheet, export.parts) if args.sheet else {}
    variants = args.show_augmentations
    variants = part_files(variants, export.parts) if variants else {}
    if not export.is_plain:
        print("\n  ".join(export.sentences()))
    statuses = []
    for part, json_file in _files(args.annotations, export).items():
        if not export.is_plain:
            print(f"\nThe part '{part}':" if len(export.parts) > 1 else "")
        targets = fixes.get(part), sheets.get(part), variants.get(part)
        statuses.append(_check(args, json_file, export.image_root, *targets))
    return max(statuses)


def _files(annotations: str, export: Export) -> dict[str, str]:
    """{part: json}; what was converted is written."""
    from rdsnet.data.coco_json import write_coco_json

    if export.json_file:
        return dict.fromkeys(export.parts, export.json_file)
    files = part_files(_FOLDER / f"{Path(annotations).absolute().stem}.json", export.parts)
    for part, path in files.items():
        write_coco_json(export.parts[part], path)
    return {part: str(path) for part, path in files.items()}


def _check(
    args: argparse.Namespace,
    json_file: str,
    images: str,
    fix: Path | None,
    sheet: Path | None,
    variants: Path | None,
) -> int:
    """Check one json; returns the exit status."""
    from rdsnet.reports.data_check import check_data, draw_sheet, repair, report_text
    from rdsnet.training.base import base_config
    from rdsnet.training.settings import fitting_notes

    name, cfg = base_config(args.config)
    wanted = {name: getattr(args, name) for name in _FIX_OPTIONS}
    crowds_are_objects = cfg.DATASETS.CROWDS_ARE_OBJECTS
    wanted["crowds_are_objects"] |= crowds_are_objects
    read = not args.no_images
    how = {"read_images": read, "crowds_are_objects": crowds_are_objects}
    check = check_data(json_file, images, **how)
    print(report_text(check, name, partial(fitting_notes, cfg)))
    if fix:
        done = repair(json_file, images, fix, check.sizes, read_images=read, **wanted)
        print(f"\nRepaired copy: {fix}")
        print("\n".join(done.lines()) or "  as it was")
        check = check_data(fix, images, sizes=check.sizes, **how)
        print(f"\n{report_text(check, name, partial(fitting_notes, cfg))}")
    if read:
        sheet = sheet or _FOLDER / f"{Path(check.json_file).stem}.png"
        if draw_sheet(check, images, sheet):
            print(f"Contact sheet: {sheet}")
    if variants:
        _show_variants(args, check, cfg, images, variants)
    return 0 if check.trainable else 1


def _show_variants(
    args: argparse.Namespace, check: DataCheck, cfg: CfgNode, images: str, path: Path
) -> None:
    """Draw what training would see; of data that cannot be trained on, say so."""
    from rdsnet.data.datasets import coco_records
    from rdsnet.reports.variants import draw_variants
    from rdsnet.training.settings import Wishes, derive_settings

    if not check.trainable:
        print("No picture of augmentations: training would fail, see above")
        return
    settings = derive_settings(cfg, check.statistics, None, Wishes(augment=args.augment))
    cfg = cfg.clone()
    cfg.merge_from_list(settings.opts())
    records = coco_records(check.content, images)
    if draw_variants(cfg, records, check.statistics.class_names, path):
        note = dict(settings.notes).get("Variation", cfg.INPUT.AUGMENTATION)
        print(f"Augmentations: {path}: {note}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
