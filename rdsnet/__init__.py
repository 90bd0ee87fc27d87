"""RDSNet (AAAI 2020) for Detectron2: reciprocal object detection and instance segmentation.

``rdsnet.load`` is for notebooks: a trained model, with ``predict``, ``train`` and ``export``.
``rdsnet.get_cfg`` and ``rdsnet.add_rdsnet_config`` register the META_ARCH ``RDSNet``, and so does
``import rdsnet.modeling``. Detectron2 is imported only then, so that the command line starts fast.
Where it is not installed, ``rdsnet.ops`` and ``rdsnet.modeling.{cropping,mask_loss,mbrm}`` still
work: they need torch alone.

What happens where, and the way of an image through it all, is in docs/architecture.md.
"""

from importlib import import_module
from pkgutil import iter_modules

__version__ = "0.1.0"
_HOMES = {"add_rdsnet_config": "config", "get_cfg": "config", "load": "api"}
__all__ = [*_HOMES]

_SUBMODULES = {module.name for module in iter_modules(__path__)}


def __getattr__(name: str):
    if name in _SUBMODULES:
        return import_module(f"rdsnet.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'rdsnet' has no attribute '{name}'")
    try:
        home = import_module(f"rdsnet.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "detectron2":
            raise
        raise ImportError(
            f"rdsnet.{name} needs Detectron2, which is not installed. Install it with "
            "'python tools/install_detectron2.py' (in a checkout of rdsnet) or from its "
            "repository, facebookresearch/detectron2."
        ) from error
    return getattr(home, name)
