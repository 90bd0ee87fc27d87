"""Find objects in images and videos and write pictures, COCO results, labelme files, masks or CSV.

--input takes images, folders (all images and videos directly inside), quoted patterns, videos, and
the number of a camera (0 is the first; Ctrl-C ends it). The pages of TIFF stacks and of animated
images are read one after the other, as the frames of a video are (--pages chooses). Into the output
folder go, for the formats asked for,
  png      overlays/NAME.png: the image with masks, boxes (solid: final, dashed: before MBRM),
           classes and scores; small images are enlarged. Of a video overlays/NAME.mp4 (mp4 is
           another name of this format)
  coco     coco_instances_results.json: one COCO result per object, with bbox (after MBRM),
           bbox_regressed (before) and the mask as RLE;
           images.json: the images and categories that its image_id and category_id stand for,
           with the number of a frame or page, from 0, as "frame"
  labelme  labelme/NAME.json: outlines to open and correct in labelme (without holes)
  cvat     cvat.xml: the same for CVAT, "Upload annotations" as CVAT 1.1
  label-studio  label_studio.json: the same for Label Studio, tasks with predictions, and
           label_studio.xml: the labelling config of their project
  masks    masks/NAME/000.png, ...: a black and white picture per object
  geojson  geojson/NAME.geojson: outlines to open in QuPath, with class, score and area
  labels   labels/NAME.ome.tif: an image of numbers (uint32), 0 where there is no object,
           and on each its number in objects.csv plus 1
  overview overview/NAME.png: the whole image, of at most 2048 px, with the outlines of its objects,
           and beside it the 512 x 512 px with most objects at full resolution
  csv      objects.csv: file, frame or page (from 0), class, score, box and area of every object

With --order uncertain these files are written when all images have been seen, the most uncertain
images first, as order.csv lists them all with their uncertainty; --limit N writes N of them. So
people correct where it pays ('rdsnet merge' takes the corrections back).

Large images (--tile) are read and predicted in tiles, so that memory depends on the tile: TIFF in
tiles or strips, .npy files, and, decoded as a whole, all other images. The formats are then geojson
(the default), coco, csv, labels and overview. Objects that are too large for a tile are looked for
at a coarser resolution. Of GeoTIFF, GeoJSON may have map coordinates (--coordinates map).
docs/large-images.md says more.

--engine ray predicts with several processes and machines, by Ray (pip install 'rdsnet[ray]').
--input may then have addresses such as s3://bucket/folder, and parquet files with a column "path".
Results are written as they come, to shards/*.parquet; the same command goes on after an
interruption. Files that cannot be read are in failures.csv. Formats are parquet (the shards, the
default), coco, csv, geojson and labels. docs/scale-out.md says more.

Images are turned as their EXIF entry says. Of 16-bit images the brightness range that they use (10,
12, 14 or 16 bit) is shown; what is transparent becomes white. Training reads images the same way.
Files that cannot be read are reported and skipped; the exit status is then 1. What was written
stays whatever comes later.

Examples:
  rdsnet predict --weights nuclei --input my_images/
  rdsnet predict --weights output/mine/model_best.pth --input photo.jpg holiday/ 'scans/**/*.tif' \\
      --output predictions
  rdsnet predict --weights nuclei --engine ray --workers 4 --input scans/ --format coco
  rdsnet predict --weights output/mine/model_best.pth --input clip.mp4 --output predictions \\
      --format mp4,csv --score-threshold 0.3 --classes dog cat
  rdsnet predict --weights nuclei --input slide.tif --tile auto --format geojson,csv
  rdsnet predict --weights output/mine/model_best.pth --input unlabelled/ --order uncertain \\
      --limit 50 --format cvat,labelme --output output/to_correct
  rdsnet predict --config-file output/mine/config.yaml --weights output/mine/model_final.pth \\
      --input holiday/ --output predictions --format png,coco \\
      --opts INPUT.MIN_SIZE_TEST 600 MODEL.DEVICE cpu
"""

from __future__ import annotations

import argparse

from rdsnet.commands.arguments import (
    add_config_options,
    add_max_detections,
    add_model_arguments,
    add_precision,
    positive,
    precision_options,
    score_or_auto,
)

FORMATS = tuple("png mp4 coco labelme masks csv geojson labels overview cvat label-studio".split())
FORMATS_OF_RAY = ("parquet", "coco", "csv", "geojson", "labels")
_ALL_FORMATS = (*FORMATS, "parquet")


def formats(text: str) -> list[str]:
    """ "png,coco" -> ["png", "coco"]; as argparse type."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in _ALL_FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"'{', '.join(unknown)}' is not among the formats {', '.join(_ALL_FORMATS)}; separate "
            "several by commas"
        )
    return names


def tile(text: str) -> int | None:
    """ "auto" or the side of the tiles, pixels; as argparse type. "auto" is 0."""
    return 0 if text == "auto" else positive(int)(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="PATH",
        help="images, folders of images, quoted patterns such as 'scans/**/*.png', videos, or the "
        "number of a camera",
    )
    parser.add_argument(
        "--output",
        default="output/predictions",
        metavar="DIR",
        help="folder to write into (default: output/predictions)",
    )
    parser.add_argument(
        "--format",
        type=formats,
        metavar="LIST",
        help=f"any of {','.join(FORMATS)} (default: png, with --tile geojson); with --engine ray "
        f"any of {','.join(FORMATS_OF_RAY)} (default: parquet)",
    )
    parser.add_argument(
        "--score-threshold",
        type=score_or_auto,
        default="auto",
        metavar="P",
        help="leave out objects with a lower score; auto: than was best for their class in "
        "validation when the model was trained, 0.5 if that is not known (default: auto)",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="NAME",
        help="keep only these classes (names or category ids)",
    )
    parser.add_argument(
        "--max-frames", type=positive(int), metavar="N", help="of every video or camera at most N"
    )
    parser.add_argument(
        "--pages",
        default="all",
        metavar="LIST",
        help="of TIFF stacks and animated images: all, first, or numbers from 0 such as 0,4-6 or "
        "10- (default: all)",
    )
    parser.add_argument(
        "--tile",
        type=tile,
        metavar="auto|SIDE",
        help="predict large images in tiles of SIDE x SIDE px; auto: where the image is too large "
        "to be seen at once, and says so (default: every image is seen at once)",
    )
    parser.add_argument(
        "--overlap",
        type=positive(int),
        metavar="N",
        help="with --tile: pixels that neighbouring tiles both see, at least the size of the "
        "largest object (default: 256)",
    )
    parser.add_argument(
        "--coordinates",
        choices=("pixels", "map"),
        help="with --tile and GeoJSON: of the image, or, for GeoTIFF, of the map (default: pixels)",
    )
    add_max_detections(parser)
    add_precision(parser, "auto", "auto")
    parser.add_argument(
        "--batch-size",
        type=positive(int),
        metavar="N",
        help="images that the model sees at once, if they follow each other and have one size once "
        "resized (default: 1 on a CPU, 4 on a GPU)",
    )
    parser.add_argument(
        "--order",
        choices=("uncertain",),
        help="write the images whose objects are most uncertain first (default: as they are named)",
    )
    parser.add_argument(
        "--limit", type=positive(int), metavar="N", help="with --order: write N images at most"
    )
    add_ray_arguments(parser)
    add_config_options(parser, "--opts")


def add_ray_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: several processes and machines (default: local, this process)",
    )
    group = parser.add_argument_group("with --engine ray")
    group.add_argument(
        "--workers",
        type=positive(int),
        metavar="N",
        help="processes, a GPU each, or a CPU where there is none (default: as many as Ray has)",
    )
    group.add_argument(
        "--address",
        metavar="ADDRESS",
        help="of a Ray cluster, such as auto or ray://host:10001 (default: RAY_ADDRESS, else this "
        "machine alone)",
    )
    group.add_argument(
        "--retry-failed",
        action="store_true",
        help="try files again that could not be read in an earlier run into the same folder",
    )
    group.add_argument(
        "--shard-size",
        type=positive(int),
        metavar="N",
        help="files that are predicted, and written, at once (default: 256)",
    )


def run(args: argparse.Namespace) -> int:
    if args.overlap and args.tile is None:
        raise ValueError("--overlap can only be given together with --tile")
    if args.coordinates and (args.tile is None or args.engine == "ray"):
        raise ValueError(
            "--coordinates can only be given together with --tile, and not with --engine ray"
        )
    if args.tile is not None:
        check_goes_with_tile(args)
    if args.limit and not args.order:
        raise ValueError("--limit can only be given together with --order uncertain")
    if args.order and args.engine == "ray":
        raise ValueError(
            "--order does not go with --engine ray, whose results are in the order of the files"
        )
    if args.engine == "ray":
        return run_with_ray(args)
    only_ray = {
        "--workers": args.workers,
        "--address": args.address,
        "--retry-failed": args.retry_failed,
        "--shard-size": args.shard_size,
        "--format parquet": "parquet" in (args.format or []),
    }
    if others := [name for name, is_given in only_ray.items() if is_given]:
        raise ValueError(f"{others[0]} can only be given together with --engine ray")
    if args.tile is not None:
        return run_tiled(args)
    from rdsnet.prediction.pipeline import predict

    summary = predict(
        args.config_file,
        args.weights,
        args.input,
        args.output,
        formats=args.format or ["png"],
        score_threshold=args.score_threshold,
        classes=args.classes,
        max_frames=args.max_frames,
        pages=args.pages,
        max_detections=args.max_detections,
        batch_size=args.batch_size,
        uncertain_first=args.order == "uncertain",
        limit=args.limit,
        opts=[*precision_options(args), *args.opts],
        trust_checkpoint=args.trust_checkpoint,
    )
    print(summary.text())
    return 1 if summary.unreadable else 0


def check_goes_with_tile(args: argparse.Namespace) -> None:
    """Raise ValueError for what is about images that are seen at once."""
    given = {
        "--max-frames": args.max_frames,
        "--batch-size": args.batch_size,
        "--pages": args.pages != "all",
        "--order": args.order,
        "--limit": args.limit,
    }
    if others := [name for name, is_given in given.items() if is_given]:
        raise ValueError(f"{others[0]} does not go with --tile: large images come one at a time")


def run_with_ray(args: argparse.Namespace) -> int:
    """``--engine ray``: several processes and machines."""
    from rdsnet.prediction import predict_with_ray

    summary = predict_with_ray(
        args.config_file,
        args.weights,
        args.input,
        args.output,
        formats=args.format or ["parquet"],
        workers=args.workers,
        address=args.address,
        retry_failed=args.retry_failed,
        shard_size=args.shard_size,
        score_threshold=args.score_threshold,
        classes=args.classes,
        max_frames=args.max_frames,
        pages=args.pages,
        tiled=args.tile is not None,
        tile=args.tile or None,
        overlap=args.overlap,
        max_detections=args.max_detections,
        batch_size=args.batch_size,
        opts=[*precision_options(args), *args.opts],
        trust_checkpoint=args.trust_checkpoint,
    )
    print(summary.text())
    return 1 if summary.unreadable or summary.missing else 0


def run_tiled(args: argparse.Namespace) -> int:
    """``--tile``: image by image, each a tile at a time."""
    from rdsnet.prediction.large_files import predict_large_files

    summary = predict_large_files(
        args.config_file,
        args.weights,
        args.input,
        args.output,
        tile=args.tile or None,
        overlap=args.overlap,
        formats=args.format or ["geojson"],
        coordinates=args.coordinates or "pixels",
        score_threshold=args.score_threshold,
        classes=args.classes,
        max_detections=args.max_detections,
        opts=[*precision_options(args), *args.opts],
        trust_checkpoint=args.trust_checkpoint,
    )
    print(summary.text())
    return 1 if summary.unreadable else 0
