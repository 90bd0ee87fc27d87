"""Find objects in images and videos and write pictures, COCO results, labelme files, masks or CSV.

--input takes images, folders (the images and videos directly inside), quoted patterns, videos, and
the number of a camera (0 is the first; Ctrl-C ends it). Into the output folder go, for the formats
asked for,
  png      overlays/NAME.png: the image with masks, boxes (solid: final, dashed: before MBRM),
           classes and scores; small images are enlarged. Of a video overlays/NAME.mp4 (mp4 is
           another name of this format)
  coco     coco_instances_results.json: one COCO result per object, with bbox (after MBRM),
           bbox_regressed (before) and the mask as RLE;
           images.json: the images and categories that its image_id and category_id stand for
  labelme  labelme/NAME.json: outlines to open and correct in labelme (without holes)
  masks    masks/NAME/000.png, ...: a black and white picture per object
  csv      objects.csv: class, score, box and area of every object

Images are all that Pillow and tifffile read, whatever their names: JPEG, PNG, TIFF, WebP, AVIF,
JPEG 2000 and more; HEIC with the package pillow-heif. They are turned as their EXIF entry says. Of
images of more than 8 bits the brightness range that they use (10, 12, 14 or 16 bit) is shown; what
is transparent becomes white. Training reads images the same way. Other files in a folder are left
out and counted.

Pages of a TIFF stack and pictures of an animation are frames, as those of a video: NAME is followed
by the number of the frame, from 0, as in NAME_000012, and the results carry it as "frame"; every
page has an overlay of its own. --pages chooses; thumbnails are no pages, and of photographs with
previews or depth maps the main picture alone is read, unless --pages says otherwise.

Files that cannot be read, missing ones among them, are reported and skipped; the exit status is
then 1. Results are complete after every image, and those of an earlier run in the same folder stay
until the first image is read.

Examples:
  rdsnet predict --weights output/mine/model_best.pth --input photo.jpg holiday/ 'scans/**/*.tif' \\
      --output predictions
  rdsnet predict --weights output/mine/model_best.pth --input clip.mp4 --output predictions \\
      --format mp4,csv --score-threshold 0.3 --classes dog cat
  rdsnet predict --config-file output/mine/config.yaml --weights output/mine/model_final.pth \\
      --input holiday/ --output predictions --format png,coco \\
      --opts INPUT.MIN_SIZE_TEST 600 MODEL.DEVICE cpu
"""

from __future__ import annotations

import argparse

from rdsnet.commands.arguments import (
    add_config_options,
    add_model_arguments,
    positive,
    score,
)

LAST_PAGE = 2**31  # beyond any


def formats(text: str) -> list[str]:
    """ "png,coco" -> ["png", "coco"]; as argparse type."""
    from rdsnet.engine.writers import WRITERS

    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in WRITERS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"'{', '.join(unknown)}' is not among the formats {', '.join(WRITERS)}; separate "
            "several by commas"
        )
    return names


def pages(text: str) -> list[range]:
    """ "0,2-5" -> [range(0, 1), range(2, 6)]; also "first", "all" and "7-"; as argparse type."""
    named = {"first": range(1), "all": range(LAST_PAGE)}
    if text in named:
        return [named[text]]
    chosen = []
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        last = (last or LAST_PAGE) if dash else first
        if not (first.isdecimal() and str(last).isdecimal() and int(first) <= int(last)):
            raise argparse.ArgumentTypeError(
                f"'{text}' names no pages: give numbers and ranges from 0 on, such as 0,2-5 or 7-, "
                "or 'first', or 'all'"
            )
        chosen.append(range(int(first), int(last) + 1))
    return chosen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="PATH",
        help="images, folders of images and videos, quoted patterns such as 'scans/**/*.png', "
        "videos, or the number of a camera",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write into")
    parser.add_argument(
        "--format",
        type=formats,
        default=["png"],
        metavar="LIST",
        help="one or several of the formats below, separated by commas (default: png)",
    )
    parser.add_argument(
        "--score-threshold",
        type=score,
        default=0.5,
        metavar="P",
        help="leave out objects with a lower score (default: 0.5)",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="NAME",
        help="keep only these classes (names or category ids)",
    )
    parser.add_argument(
        "--pages",
        type=pages,
        metavar="LIST",
        help="of files with several pages and of videos these alone, counted from 0: 0 or 2-5 or "
        "0,3,7- or first or all (default: all)",
    )
    parser.add_argument(
        "--max-frames",
        type=positive(int),
        metavar="N",
        help="of every video, camera or file with several pages at most N",
    )
    add_config_options(parser, "--opts")


def run(args: argparse.Namespace) -> int:
    from rdsnet.engine.prediction import predict

    summary = predict(
        args.config_file,
        args.weights,
        args.input,
        args.output,
        formats=args.format,
        score_threshold=args.score_threshold,
        classes=args.classes,
        pages=args.pages,
        max_frames=args.max_frames,
        opts=args.opts,
        trust_checkpoint=args.trust_checkpoint,
    )
    print(summary.text())
    return 1 if summary.unreadable else 0
