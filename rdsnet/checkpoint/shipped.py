"""Models in the box: trained weights that installed packages bring, by name.

A package says so in the entry point group ``rdsnet.models``, such as
``nuclei = rdsnet.projects.nuclei``. That package then holds ``nuclei.pth``, as
:mod:`rdsnet.checkpoint.packing` writes it, and ``model_card.md``: what the model was made of, and
what it is not for. The package itself is not imported.

Whatever takes the path of a checkpoint also takes such a name, by way of :func:`weights_file`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

GROUP = "rdsnet.models"
CARD = "model_card.md"


@dataclass(frozen=True)
class ShippedModel:
    """A name, and where its files are or should be."""

    name: str
    package: str
    folder: Path | None  # None: the package itself isn't there

    @property
    def file(self) -> Path | None:
        """The checkpoint; None: it is missing from this installation."""
        path = self.folder and self.folder / f"{self.name}.pth"
        return path if path and path.is_file() else None

    @property
    def card(self) -> Path | None:
        path = self.folder and self.folder / CARD
        return path if path and path.is_file() else None

    def missing(self) -> str:
        """A sentence on the file that is not there, with the remedy."""
        place = self.folder / f"{self.name}.pth" if self.folder else f"the package {self.package}"
        return (
            f"the model '{self.name}' belongs to this installation, but {place} is missing. "
            "Install the package that brings it again, or give the path of a checkpoint."
        )


def shipped_models() -> dict[str, ShippedModel]:
    """{name: model} of the installed packages, in the order of their names."""
    found = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        found[entry.name] = ShippedModel(entry.name, entry.value, _folder(entry.value))
    return found


def weights_file(weights: str) -> str:
    """The file that ``--weights`` or ``MODEL.WEIGHTS`` means.

    A file that exists wins over a model of its name; a folder does not. What is no such name (a
    path, an address such as ``timm://...``, "") is returned as it is, there or not.

    Raises:
        FileNotFoundError: for a name that no model in the box has, or whose file is missing.
    """
    if not is_name(weights) or Path(weights).is_file():
        return weights
    return shipped_file(weights)


def shipped_file(name: str) -> str:
    """The checkpoint of a model in the box.

    Raises:
        FileNotFoundError: no model has this name, or its file is missing.
    """
    models = shipped_models()
    if name not in models:
        there = f"In the box: {', '.join(models)}." if models else "No package brings one."
        raise FileNotFoundError(
            f"weights '{name}' are neither a file nor the name of a model in the box. {there} Else "
            "give the path of a checkpoint (.pth or .pkl)."
        )
    if models[name].file is None:
        raise FileNotFoundError(models[name].missing())
    return str(models[name].file)


def is_name(weights: str) -> bool:
    """Whether this can be the name of a model: one word, neither address nor file name."""
    return bool(weights) and os.path.basename(weights) == weights and not Path(weights).suffix


def _folder(package: str) -> Path | None:
    try:
        spec = find_spec(package)
    except ModuleNotFoundError:  # of a package above it
        return None
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None
