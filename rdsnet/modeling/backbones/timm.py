"""Any model of timm with features at several strides, as the bottom-up part of an FPN.

The features are named by their strides as those of Detectron2's ResNets are: res2 (4), res3 (8),
res4 (16), res5 (32). Pretrained weights are loaded as all weights are, by ``MODEL.WEIGHTS``
(:mod:`rdsnet.checkpoint.pretrained`), so that building a model never needs them.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rdsnet.modeling.backbones.same_padding import replace_convolutions

_NORMS = ("FrozenBN", "BN", "SyncBN")
# Examples, for messages.
SUITABLE = (
    "resnet18, resnet50, mobilenetv3_large_100, tf_efficientnet_lite0, efficientnet_b0, "
    "convnext_tiny, swin_tiny_patch4_window7_224"
)


class TimmBackbone(Backbone):
    """Features of a timm model.

    Args:
        name: of the model, as ``timm.list_models()`` has it; a tag after a dot (of weights) is
            allowed and without effect.
        out_features: ``"res<i>"`` for the features of stride 2 ** i, fine to coarse.
        norm: what its BatchNorm does in training: "BN", "SyncBN" (over all processes) or
            "FrozenBN" (keeps statistics and factors as they were loaded).
        in_channels: of the images.

    Raises:
        ModuleNotFoundError: without timm.
        ValueError: there is no such model, or it has no such features, or it takes images of one
            size only.
    """

    def __init__(
        self, name: str, out_features: list[str], norm: str = "BN", in_channels: int = 3
    ) -> None:
        super().__init__()
        if norm not in _NORMS:
            raise ValueError(f"MODEL.TIMM.NORM must be one of {', '.join(_NORMS)}, got '{norm}'")
        self.name, self.in_channels = name, in_channels
        self._out_features = list(out_features)
        self._out_feature_strides = {name: _stride_of(name) for name in out_features}
        self._frozen: list[nn.Module] = []
        self._loaded = False
        self.features = self.create_features()
        if norm == "SyncBN":
            from timm.layers import convert_sync_batchnorm

            self.features = convert_sync_batchnorm(self.features)
        channels = self.features.feature_info.channels()
        self._out_feature_channels = dict(zip(out_features, channels, strict=True))
        self._channels_last = getattr(self.features, "output_fmt", None) == "NHWC"
        self._check_shapes()

        if norm == "FrozenBN":
            self._frozen = [m for m in self.features.modules() if isinstance(m, _BatchNorm)]
            notice = TimmBackbone._notice_statistics
            self._register_load_state_dict_pre_hook(notice, with_module=True)
        for batch_norm in self._frozen:
            batch_norm.requires_grad_(False).eval()

    def create_features(self, **options) -> nn.Module:
        """Another one of the same form; ``options``: as of :func:`create_features`."""
        strides = [*self._out_feature_strides.values()]
        options = {"in_chans": self.in_channels, **options}
        features = create_features(self.name, strides, **options)
        replace_convolutions(features)
        return features

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W), H and W multiples of the coarsest stride -> {"res3": (B, C, H/8, W/8), ...}

        Raises:
            ValueError: in training, if BatchNorm is frozen and no statistics were loaded.
        """
        if self.training and self._frozen and not self._loaded:
            raise ValueError(
                f"BatchNorm of the backbone '{self.name}' keeps the statistics of MODEL.WEIGHTS "
                "(MODEL.TIMM.NORM FrozenBN), but no weights of this backbone have been loaded. Is "
                "MODEL.WEIGHTS of another model? Trainer.resume_or_load() loads it before "
                "training; with MODEL.WEIGHTS '' BatchNorm is trained too."
            )
        features = self.features(image)
        if self._channels_last:
            features = [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
        return dict(zip(self._out_features, features, strict=True))

    def train(self, mode: bool = True) -> TimmBackbone:
        super().train(mode)
        for batch_norm in self._frozen:
            batch_norm.eval()
        return self

    def _notice_statistics(self, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
        """Before weights are loaded: do they hold the statistics that are to be kept?"""
        names = [name for name, _ in self.named_buffers() if name.endswith("running_var")]
        self._loaded |= all(prefix + name in state_dict for name in names)

    @torch.no_grad()
    def _check_shapes(self) -> None:
        """Raise ValueError unless an image of 3 x 5 cells gives features of the stated strides.

        Some models know one size of images only, or windows that have to fit; others (without
        padding) have fewer cells.
        """
        height, width = 3 * self.size_divisibility, 5 * self.size_divisibility
        expected = {
            name: (1, shape.channels, height // shape.stride, width // shape.stride)
            for name, shape in self.output_shape().items()
        }
        self.eval()
        try:
            features = self(torch.zeros(1, self.in_channels, height, width))
            found = {name: tuple(feature.shape) for name, feature in features.items()}
            problem = "" if found == expected else f"features {found}, expected {expected}"
        except (RuntimeError, AssertionError, ValueError) as error:
            problem = str(error).partition("\n")[0] or type(error).__name__
        self.train()
        if problem:
            raise ValueError(
                f"the timm model '{self.name}' (MODEL.TIMM.NAME) cannot be used for images of any "
                f"size: {height} x {width} px give {problem}. Among those that can: {SUITABLE}"
            )


def create_features(name: str, strides: list[int], **options) -> nn.Module:
    """A timm model, image (B, C, H, W) -> list of its features of the given strides.

    Where several have the same stride it is the deepest. ``options``: more arguments of
    ``timm.create_model``.

    Raises:
        ModuleNotFoundError, ValueError: see :class:`TimmBackbone`.
    """
    timm = import_timm()
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        similar = difflib.get_close_matches(architecture, timm.list_models(), n=4, cutoff=0.5)
        raise ValueError(
            f"timm {timm.__version__} has no model '{name}' (MODEL.TIMM.NAME). "
            + (f"Similar: {', '.join(similar)}; all: timm.list_models()" if similar else SUITABLE)
        )
    with torch.device("meta"):  # no memory and no time
        info = timm.create_model(architecture, features_only=True).feature_info.info
    index = {stage["reduction"]: i for i, stage in enumerate(info)}
    if missing := [stride for stride in strides if stride not in index]:
        there = ", ".join(
            f"res{s.bit_length() - 1} (stride {s})" if s & (s - 1) == 0 else f"stride {s}"
            for s in index
        )
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES asks for features of stride {' and '.join(map(str, missing))}, "
            f"but the timm model '{name}' (MODEL.TIMM.NAME) has: {there}. Among those with strides "
            f"4, 8, 16 and 32: {SUITABLE}"
        )
    if architecture.startswith("swin"):  # takes images of any size if told so
        options["strict_img_size"] = False
    indices = [index[stride] for stride in strides]
    with _without_warnings("timm"):  # that features need no classifier
        return timm.create_model(name, features_only=True, out_indices=indices, **options)


@contextmanager
def _without_warnings(logger_name: str) -> Iterator[None]:
    """Inside, a logger reports nothing below an error."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def import_timm() -> ModuleType:
    """The package timm, imported when it is needed: it takes seconds.

    Raises:
        ModuleNotFoundError: naming the remedy.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the backbone needs the package timm: pip install timm", name=error.name
        ) from error
    return timm


def _stride_of(feature: str) -> int:
    """8 for "res3".

    Raises:
        ValueError: for a name of another kind.
    """
    if not re.fullmatch(r"res[1-9]", feature):
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES has '{feature}': features of timm's models are named res2 "
            "(stride 4), res3 (stride 8), res4, res5"
        )
    return 2 ** int(feature[3:])
