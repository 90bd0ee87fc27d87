"""How many channels the training images have, and how their numbers are scaled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from detectron2.config import CfgNode

from rdsnet.data.arrays import Kind
from rdsnet.data.channels import are_photographs, kinds_of, measured_ranges
from rdsnet.data.findings import counted, printable


def channel_settings(
    cfg: CfgNode,
    files: Sequence[str],
    val_files: Sequence[str] = (),
    asked: int | None = None,
    scaling: str | None = None,
) -> tuple[dict[str, object], str]:
    """Decide on ``INPUT.CHANNELS`` and what belongs to it.

    Photographs stay what they are: nothing is set then.

    Args:
        cfg: the base config, whose normalisation is for its own number of channels.
        files, val_files: of the images to train and to evaluate on; those that cannot be opened
            are passed over.
        asked: the number of channels that the user wants; None: by the files.
        scaling: the ``INPUT.SCALING`` that the user wants; None: "none" for numbers of 8 bits, else
            "dataset".

    Returns:
        Config options, and a sentence; "" for photographs.

    Raises:
        ValueError: files have different numbers of channels; some have others than ``asked``.
    """
    kinds = kinds_of(files, asked)
    if asked in (None, 3) and not scaling and are_photographs(kinds):
        usual = cfg.INPUT.CHANNELS == 3 and cfg.INPUT.SCALING == "none"
        if usual and len(cfg.MODEL.PIXEL_MEAN) == 3:
            return {}, ""
        options = {"INPUT.CHANNELS": 3, "INPUT.SCALING": "none", **_normalisation(cfg, 3)}
        return options, "3, photographs; the weights have learnt images of others"
    count = asked or _count_of(kinds)
    for file, kind in (kinds | kinds_of(val_files, count)).items():
        if kind.channels != count and not (count == 1 and kind.is_photograph):
            raise ValueError(
                f"image {printable(file)} has {counted(kind.channels, 'channel')}, and the model "
                f"is to have {count}. Leave it out, or give another --channels."
            )
    deep = [file for file, kind in kinds.items() if kind.is_deep]
    scaling = scaling or ("dataset" if deep or count == 3 else "none")
    options = {"INPUT.CHANNELS": count, "INPUT.SCALING": scaling, **_normalisation(cfg, count)}
    why = "as asked for" if asked else "as all files have"
    text = f"{count} ({why}), of {'more than ' if deep else ''}8 bits, "
    if scaling == "dataset":
        percentiles = tuple(cfg.INPUT.PERCENTILES)
        ranges = measured_ranges([*kinds], count, percentiles)
        options["INPUT.SCALE_RANGES"] = [[_short(low), _short(high)] for low, high in ranges]
        shown = ", ".join(f"{low:g} to {high:g}" for low, high in options["INPUT.SCALE_RANGES"])
        text += f"scaled by percentiles {percentiles[0]:g} and {percentiles[1]:g} of all: {shown}"
    elif scaling == "image":
        text += "scaled by percentiles of every image"
    else:
        text += "as they are"
    return options, text


def _count_of(kinds: dict[str, Kind]) -> int:
    """The number of channels that all files have."""
    files = defaultdict(list)
    for file, kind in kinds.items():
        files[kind.channels].append(file)
    if len(files) == 1:
        return next(iter(files))
    found = "; ".join(
        f"{count}: {counted(len(some), 'file')}, such as {printable(some[0])}"
        for count, some in sorted(files.items())
    )
    raise ValueError(
        f"the training images have different numbers of channels ({found}). A model takes one "
        "number: leave the others out."
    )


def _normalisation(cfg: CfgNode, count: int) -> dict[str, list[float]]:
    """Mean and deviation for as many channels: the base's, or their means over its channels."""
    options = {}
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        values = list(cfg.MODEL[key])
        if len(values) != count:
            options[f"MODEL.{key}"] = [sum(values) / len(values)] * count
    return options


def _short(value: float) -> float:
    return float(f"{value:.6g}")
