"""Arguments that several subcommands have, and the types of their values."""

from __future__ import annotations

import argparse
import math
import os
import re

from rdsnet.checkpoint.trust import add_trust_argument


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which trained model: ``--weights``, ``--config-file`` and ``--trust-checkpoint``."""
    add_weights(parser, required=True)
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="yaml config file (default: the config in the checkpoint, or config.yaml beside it)",
    )
    add_trust_argument(parser)


def add_weights(parser: argparse.ArgumentParser, more: str = "", *, required: bool = False) -> None:
    """``--weights``; ``more`` goes on with its explanation."""
    parser.add_argument(
        "--weights",
        required=required,
        metavar="FILE",
        help="checkpoint (.pth or .pkl), or the name of a model in the box where there is no such "
        "file (rdsnet models); to predict and evaluate also an ONNX or OpenVINO file of rdsnet "
        f"export{more}",
    )


def use_weights(args: argparse.Namespace) -> None:
    """Put ``--weights`` before the config options; without ``--config-file`` its config is used.

    Raises:
        FileNotFoundError, ValueError: there are no such weights, or they hold no config and none is
            given; neither is given.
    """
    if args.weights:
        from rdsnet.checkpoint.shipped import weights_file
        from rdsnet.checkpoint.trained import check_weights, find_config

        weights = weights_file(args.weights)
        check_weights(weights)
        args.opts = ["MODEL.WEIGHTS", weights, *args.opts]
        args.config_file = args.config_file or find_config(weights)
    elif not args.config_file:
        raise ValueError(
            "give --weights FILE, a checkpoint that holds its config, or --config-file FILE"
        )


def add_data(group: argparse._ActionsContainer, name: str, explanation: str) -> None:
    """An export and, if needed, the folder of its images: a pair whose second may be None.

    KEY VALUE words may follow; they become config options.
    """
    group.add_argument(
        name, nargs="+", action=_Data, metavar=("ANNOTATIONS", "IMAGES"), help=explanation
    )


class _Data(argparse.Action):
    def __call__(self, parser, namespace, words, option_string=None) -> None:
        has_images = len(words) > 1 and not _is_config_key(words[1])
        options = words[2 if has_images else 1 :]
        if options and not _is_config_key(options[0]):
            raise argparse.ArgumentError(
                self,
                f"{len(words)} paths are given, expected one (a file, or the folder of many) and, "
                "where the export does not say where they are, the folder of the images",
            )
        setattr(namespace, self.dest, (words[0], words[1] if has_images else None))
        namespace.opts = [*(getattr(namespace, "opts", None) or []), *options]


def _is_config_key(word: str) -> bool:
    """Whether a word is rather the name of a config option than a path."""
    is_name = re.fullmatch(r"[A-Z][A-Z0-9_]*([._][A-Z0-9_]+)+|SEED|VERSION", word) is not None
    return is_name and not os.path.exists(word)


def add_config_options(parser: argparse.ArgumentParser, name: str = "opts") -> None:
    """KEY VALUE words at the end of the line, as ``opts``: a positional, or after ``--opts``."""
    parser.add_argument(
        name,
        action="extend",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config options to change, after all other arguments",
    )


def positive(kind: type) -> type:
    """A number of this kind above 0 and below infinity; as argparse type."""

    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
        return value

    return convert


def add_max_detections(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-detections",
        type=positive(int),
        metavar="N",
        help="at most so many objects per image (default: TEST.DETECTIONS_PER_IMAGE of the config)",
    )


def add_upload_limits(parser: argparse.ArgumentParser) -> None:
    """What is refused from whoever reaches a page or a service."""
    parser.add_argument(
        "--max-upload-mb",
        type=positive(float),
        default=20.0,
        metavar="MB",
        help="refuse larger files (default: 20)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=positive(float),
        default=50.0,
        metavar="MP",
        help="refuse images of more pixels (default: 50)",
    )


AUGMENTATIONS = ("none", "light", "strong", "microscopy", "aerial")
"""The names of :data:`rdsnet.data.augmentations.PRESETS`, which takes seconds to import."""


def add_augment(parser: argparse._ActionsContainer, more: str = "") -> None:
    """``--augment``; ``more`` follows in its help."""
    parser.add_argument(
        "--augment",
        choices=AUGMENTATIONS,
        help="how training varies images: not at all; left and right exchanged; sizes and colours "
        "too; as images of microscopes and from above may be, which have no upper side (default: "
        f"by the data{more})",
    )


def add_precision(parser: argparse.ArgumentParser, default: str | None, explained: str) -> None:
    """``--precision``; ``explained`` is the default, in words."""
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bf16", "fp16"),
        default=default,
        help="what convolutions are computed in; auto: bf16 where the processor has AMX, or "
        f"AVX512_BF16 that is not Intel's, else float32, as on a GPU (default: {explained})",
    )


def precision_options(args: argparse.Namespace) -> list[str]:
    """``--precision`` as config options KEY VALUE; none where it was not given."""
    return ["MODEL.RDSNET.INFERENCE.PRECISION", args.precision] if args.precision else []


def score_or_auto(text: str) -> float | str:
    """A number from 0 to 1, or "auto"; as argparse type."""
    return text if text == "auto" else score(text)


def score(text: str) -> float:
    """A number from 0 to 1; as argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 1")
    return value
