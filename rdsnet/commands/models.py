"""List the models in the box: trained weights that come with the installation.

Their names stand for files: --weights NAME of predict, app, eval, export, fit-mbrm and train. A
file of that name in the current folder comes first. Nothing is downloaded. Other packages bring
models by entry points in the group rdsnet.models (docs/models.md).

Example:
  rdsnet models
"""

from __future__ import annotations

import argparse

from rdsnet.checkpoint.shipped import GROUP, ShippedModel, shipped_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None but --help."""


def run(args: argparse.Namespace) -> None:
    models = shipped_models()
    if not models:
        print(
            "No model is in the box: no installed package has an entry point in the group "
            f"{GROUP}. In a checkout of rdsnet, 'make env' or 'pip install -e .' installs those of "
            "projects/."
        )
        return
    for model in models.values():
        print("\n".join(_described(model)), end="\n\n")
    there = [model.name for model in models.values() if model.file]
    if there:
        print(f"Use one: rdsnet predict --weights {there[0]} --input photos/ --output predictions/")


def _described(model: ShippedModel) -> list[str]:
    """A paragraph on a model."""
    from rdsnet.checkpoint.description import read_config
    from rdsnet.checkpoint.packing import read_card

    card = [f"card: {model.card}"] if model.card else []
    if model.file is None:
        return [model.name, *(f"  {line}" for line in [f"not there: {model.missing()}", *card])]
    try:
        packed, config = read_card(model.file), read_config(model.file)
    except ValueError as error:
        return [model.name, f"  not usable: {error}"]
    lines = []
    if config is not None:
        lines.append(f"classes: {', '.join(name for _, name in config.DATASETS.CLASSES)}")
    if packed is not None:
        lines.insert(0, packed.finds)
        lines += [figures] if (figures := packed.figures_text()) else []
        lines += [f"trained on: {packed.data}", f"licence: {packed.licence}"]
    lines += [f"{model.file} ({model.file.stat().st_size / 1e6:.1f} MB)", *card]
    return [model.name, *(f"  {line}" for line in lines)]
