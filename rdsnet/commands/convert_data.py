"""Make one COCO json of what an annotation tool has exported.

Read are COCO's json; YOLO for segmentation (data.yaml, or its folder); labelme's json files;
CVAT's xml for images; VIA's json; Label Studio's json; GeoJSON of QuPath; Pascal VOC with masks of
objects; and folders of mask pictures: one label image per photograph, in which every object has its
number, or one picture per object. What it is, is seen from the content. The commands train,
check-data and eval read the same without this one, which is for other programs and for looking at
the result.

One sentence says what was found, and others what was left out and why. Where the export has parts,
OUT is the one for training, and OUT_val.json and OUT_test.json are written beside it, with the same
classes.

Examples:
  rdsnet convert-data export/ annotations.json
  rdsnet convert-data via_region_data.json annotations.json --images photos/
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("annotations", metavar="IN", help="file or folder that a tool has exported")
    parser.add_argument("out", metavar="OUT.json", help="the json to write; must not exist")
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="folder of the images (default: where the export says, or beside it)",
    )


def run(args: argparse.Namespace) -> None:
    from rdsnet.data.coco_json import write_coco_json
    from rdsnet.data.findings import counted
    from rdsnet.data.formats import read_export

    export = read_export(args.annotations, args.images)
    files = part_files(args.out, export.parts)
    for path in files.values():
        if path.exists():
            raise FileExistsError(f"{path} exists already. Choose another name or remove it.")
    print("\n  ".join(export.sentences()))
    root = os.path.abspath(export.image_root)
    for part, path in files.items():
        write_coco_json(export.parts[part], path)
        print(f"{path}: {counted(len(export.parts[part]['images']), 'image')}, names from {root}")


def part_files(out: str | os.PathLike, parts: dict[str, dict]) -> dict[str, Path]:
    """The file of every part: OUT of the first, and OUT_val.json and so on of others."""
    out = Path(out)
    others = list(parts)[1:]
    first = {next(iter(parts)): out}
    return first | {part: out.with_name(f"{out.stem}_{part}{out.suffix}") for part in others}
