"""Detectron2's DefaultPredictor with weights that are read safely, and made ready for inference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor

from rdsnet.checkpoint import Checkpointer
from rdsnet.checkpoint.changes import check_other_use
from rdsnet.checkpoint.shipped import weights_file
from rdsnet.data.channels import Channels, applied
from rdsnet.modeling import inference_precision, prepare_for_inference


class Predictor(DefaultPredictor):
    """From a BGR image (H, W, 3) uint8 to ``{"instances": Instances}``, as in Detectron2.

    By ``INPUT.CHANNELS`` and ``INPUT.SCALING`` an image may also be (H, W, C), as
    :meth:`rdsnet.data.channels.Channels.read` gives it.

    Its model is :func:`~rdsnet.modeling.prepare_for_inference`'s and computes in
    ``MODEL.RDSNET.INFERENCE.PRECISION``.

    Args:
        cfg: with ``MODEL.WEIGHTS``, a path, an address or the name of a model in the box.
        trust_checkpoint: see :func:`rdsnet.checkpoint.read_checkpoint`; Detectron2's own predictor
            runs the code in a .pkl without asking.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the weights do not fit, or have learnt the classes in another order; the device
            does not compute in the precision.
    """

    def __init__(self, cfg: CfgNode, trust_checkpoint: bool = False) -> None:
        weights = weights_file(cfg.MODEL.WEIGHTS)
        without_weights = cfg.clone()
        without_weights.defrost()
        without_weights.MODEL.WEIGHTS = ""
        super().__init__(without_weights)
        self.channels = Channels.of(cfg)
        with inference_precision(cfg):
            pass  # what the device cannot do is said now
        check_other_use(cfg, weights)
        Checkpointer(self.model, trust=trust_checkpoint).load(weights)
        self.model = prepare_for_inference(self.model)

    def __call__(self, original_image: np.ndarray) -> dict:
        return self.find([self.prepare(original_image)])[0]

    def prepare(self, image: np.ndarray) -> dict:
        """What the model is given for an image, resized as the config says; in any thread.

        Raises:
            ValueError: the image has another number of channels than the model.
        """
        height, width = image.shape[:2]
        image = applied(self.aug.get_transform(image), self.ordered(image))
        image = torch.as_tensor(image.astype("float32").transpose(2, 0, 1))
        return {"image": image, "height": height, "width": width}

    def ordered(self, image: np.ndarray) -> np.ndarray:
        """An image, or a part of one, with its channels in the order that the model expects.

        Raises:
            ValueError: as :meth:`prepare`.
        """
        found = image.shape[2] if image.ndim == 3 else 1
        if found != self.channels.count:
            raise ValueError(
                f"the image has {found} channels, the model expects {self.channels.count}"
            )
        is_turned = self.input_format == "RGB" and self.channels.are_photographs
        return image[:, :, ::-1] if is_turned else image

    def find(self, prepared: Sequence[dict]) -> list[dict]:
        """``{"instances": Instances}`` of every image that :meth:`prepare` has seen.

        Images of one size give what each gives alone, but for rounding. Those of several sizes are
        padded to a common one, and what is found near a border changes.
        """
        with torch.no_grad(), inference_precision(self.cfg):
            return self.model(list(prepared))


class CountingPredictor(Predictor):
    """A :class:`Predictor` that knows when ``TEST.DETECTIONS_PER_IMAGE`` has cut objects off.

    It looks for one object more than it returns.

    Attributes:
        max_detections: ``TEST.DETECTIONS_PER_IMAGE``.
        were_cut_off: whether the images of the last call had more.
    """

    def __init__(self, cfg: CfgNode, trust_checkpoint: bool = False) -> None:
        self.max_detections, self.were_cut_off = cfg.TEST.DETECTIONS_PER_IMAGE, [False]
        one_more = cfg.clone()
        one_more.defrost()
        one_more.TEST.DETECTIONS_PER_IMAGE += 1
        super().__init__(one_more, trust_checkpoint)

    @property
    def was_cut_off(self) -> bool:
        """Whether the last image had more."""
        return self.were_cut_off[-1]

    def find(self, prepared: Sequence[dict]) -> list[dict]:
        found = [result["instances"] for result in super().find(prepared)]  # best first
        self.were_cut_off = [len(instances) > self.max_detections for instances in found]
        return [{"instances": instances[: self.max_detections]} for instances in found]
