"""RDSNet (AAAI 2020) for Detectron2: reciprocal object detection and instance segmentation.

Importing this package registers the META_ARCH ``RDSNet``. Where Detectron2 is not installed,
``rdsnet.ops`` and ``rdsnet.modeling.{cropping,mask_loss,mbrm}`` still work: they need torch alone.
"""

from importlib.util import find_spec

__version__ = "0.1.0"

if find_spec("detectron2") is not None:
    from rdsnet import modeling  # noqa: F401  (registers the model)
    from rdsnet.config import add_rdsnet_config, get_cfg

    __all__ = ["add_rdsnet_config", "get_cfg"]
else:

    def __getattr__(name: str):
        if name in ("get_cfg", "add_rdsnet_config"):
            raise ImportError(
                f"rdsnet.{name} needs Detectron2, which is not installed. Install it with "
                "'python tools/install_detectron2.py' (in a checkout of rdsnet) or from its "
                "repository, facebookresearch/detectron2."
            )
        raise AttributeError(f"module 'rdsnet' has no attribute '{name}'")
