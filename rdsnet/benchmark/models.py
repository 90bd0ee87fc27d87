"""RDSNet beside bare RetinaNet and Mask R-CNN, and beside itself as it is shipped: same backbone,
same images, in turn.

Weights are random, and what depends on them is made comparable:

* RetinaNet uses RDSNet's own backbone and head branches, so that it detects the same boxes. The
  difference is what RDSNet adds: representations, pixel stream, masks and MBRM.
* Score thresholds are set so that ``_CANDIDATES`` anchor-class pairs (or proposal-class pairs) of
  the images pass, as with a trained model on a busy image: NMS and masks then have their usual
  work.
* Residual branches of the ResNet are scaled down, or activations of random weights would overflow.

The same on the lite backbone, on smaller images (:data:`LITE_SIZE`). Besides, the plain model is
compared with what users of the commands get (:mod:`rdsnet.modeling.inference`), on both.

RDSNet's inference ends with COCO RLE, as its evaluation does; Mask R-CNN ends with what Detectron2
returns, masks pasted into the image.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec

import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from rdsnet import model_zoo
from rdsnet.benchmark import measure
from rdsnet.benchmark.scene import make_scene
from rdsnet.modeling import prepare_for_inference
from rdsnet.modeling.retinanet_stream import group_norm

_OBJECTS = 20  # per training image
_CANDIDATES = 1000  # per image, anchor-class pairs above the score threshold
_RESIDUAL_SCALE = 0.25
LITE_CLASSES = 1  # as of data of one's own
LITE_SIZE = 512  # px, the shorter side for the lite backbone, at most


@dataclass
class Settings:
    """What to run; ``rounds`` at inference, about half as many training steps.

    ``options`` are config keys and values in a row, for RDSNet on a ResNet and the RetinaNet beside
    it; ``classes`` those of the ground truth.
    """

    device: str
    dtype: str
    depth: int
    size: int
    images: int
    threads: int
    rounds: int
    options: list[str] = field(default_factory=list)
    classes: int = 80


def run(settings: Settings, progress: Callable[[str], None] = print) -> dict:
    """Returns ``machine``, ``settings``, ``results``, one per backbone and phase, and
    ``as_shipped``, per model the times of the plain one and of what users get.

    ``options`` are about the ResNet: with some, the lite backbone is left out.
    """
    report: dict = {
        "machine": measure.describe_machine(settings.device),
        "settings": asdict(settings),
        "results": [],
        "as_shipped": {},
    }
    cases = {f"R-{settings.depth}": (build_models, settings)}
    if find_spec("timm") is not None and not settings.options:
        size = min(settings.size, LITE_SIZE)
        cases["lite"] = (build_lite, replace(settings, size=size, classes=LITE_CLASSES))
    with measure.threads(settings.threads), EventStorage():
        for name, (build, own) in cases.items():
            case = f"{name}, {own.size} px"
            start = time.perf_counter()
            models, batch = build(own), make_batch(own)
            counts = calibrate(models, batch, own)
            progress(f"{case}: built and calibrated in {time.perf_counter() - start:.0f} s")
            found = {}
            for phase, prepare in (("inference", inference_call), ("training", training_call)):
                times = found[phase] = _phase(phase, prepare, models, batch, own)
                medians = (f"{k} {v['median_ms']:.0f} ms" for k, v in times.items())
                progress(f"{case}, {phase}: {', '.join(medians)}")
                if phase == "inference":  # before training changes statistics of normalisation
                    shipped = _as_shipped(models["RDSNet"], batch, own)
                    report["as_shipped"][f"RDSNet {case}"] = shipped
                    for model, times_of_model in times.items():
                        times_of_model["detections"] = counts[model]
            report["results"] += [
                {"backbone": name, "size": own.size, "phase": phase, "models": times}
                for phase, times in found.items()
            ]
    return report


def _phase(
    phase: str,
    prepare: Callable,
    models: dict[str, nn.Module],
    batch: list[dict],
    settings: Settings,
) -> dict:
    """Times and memory of the models in one phase, in turn."""
    calls = {name: prepare(model, batch, settings) for name, model in models.items()}
    rounds = settings.rounds if phase == "inference" else (settings.rounds + 1) // 2
    for model in models.values():
        model.train(phase == "training")
    times = measure.alternate(calls, settings.device, 0, (rounds, rounds))
    for name, call in calls.items():
        times[name]["extra_peak_mb"] = measure.extra_peak_mb(call, settings.device, 1)
    return times


def build_models(settings: Settings) -> dict[str, nn.Module]:
    """RetinaNet, RDSNet and Mask R-CNN with random weights."""
    torch.manual_seed(0)
    cfg = model_zoo.get_config(f"COCO-InstanceSegmentation/rdsnet_R_{settings.depth}_FPN_1x.yaml")
    cfg.merge_from_list(settings.options)
    cfg.MODEL.DEVICE, cfg.MODEL.RDSNET.DENSE_MASKS = settings.device, False
    rdsnet = build_model(cfg)
    scale_residuals(rdsnet)
    name = f"COCO-InstanceSegmentation/mask_rcnn_R_{settings.depth}_FPN_3x.yaml"
    mask_cfg = detectron2_zoo.get_config(name)
    mask_cfg.MODEL.DEVICE, mask_cfg.INPUT.MASK_FORMAT = settings.device, "bitmask"
    mask_rcnn = build_model(mask_cfg)
    scale_residuals(mask_rcnn)
    return {"RetinaNet": bare_retinanet(cfg, rdsnet), "RDSNet": rdsnet, "Mask R-CNN": mask_rcnn}


def build_lite(settings: Settings) -> dict[str, nn.Module]:
    """The three models on EfficientNet-Lite0, with random weights."""
    torch.manual_seed(0)
    cfg = model_zoo.get_config("lite/rdsnet_lite0_96.yaml")
    mask_cfg = model_zoo.get_config("paper/mask_rcnn_lite0_96.yaml")
    for one in (cfg, mask_cfg):
        one.MODEL.DEVICE, one.MODEL.WEIGHTS = settings.device, ""
        one.MODEL.RETINANET.NUM_CLASSES = one.MODEL.ROI_HEADS.NUM_CLASSES = settings.classes
    cfg.MODEL.RDSNET.DENSE_MASKS = False
    rdsnet, mask_rcnn = build_model(cfg), build_model(mask_cfg)
    return {"RetinaNet": bare_retinanet(cfg, rdsnet), "RDSNet": rdsnet, "Mask R-CNN": mask_rcnn}


def bare_retinanet(cfg: CfgNode, rdsnet: nn.Module) -> RetinaNet:
    """Detectron2's RetinaNet on the backbone and the detection branches of an RDSNet."""
    without_norm = cfg.clone()
    without_norm.MODEL.RETINANET.NORM = ""
    arguments = RetinaNet.from_config(without_norm)
    arguments["backbone"] = rdsnet.backbone
    shapes = [rdsnet.backbone.output_shape()[name] for name in cfg.MODEL.RETINANET.IN_FEATURES]
    # Its 0.6 release does not take "GN" by name.
    head_arguments = RetinaNetHead.from_config(without_norm, shapes)
    norm = cfg.MODEL.RETINANET.NORM
    head = RetinaNetHead(**{**head_arguments, "norm": group_norm if norm == "GN" else norm})
    for name in ("cls_subnet", "bbox_subnet", "cls_score", "bbox_pred"):
        setattr(head, name, getattr(rdsnet.object_stream.head, name))
    arguments["head"] = head
    return RetinaNet(**arguments).to(cfg.MODEL.DEVICE)


@torch.no_grad()
def scale_residuals(model: nn.Module) -> None:
    for block in model.modules():
        if isinstance(block, BottleneckBlock):
            block.conv3.norm.weight.fill_(_RESIDUAL_SCALE)


def make_batch(settings: Settings) -> list[dict]:
    """Random images with the objects of the mask path's scenes as ground truth."""
    batch = []
    for seed in range(settings.images):
        scene = make_scene(_OBJECTS, settings.size, seed=seed)
        g = torch.Generator().manual_seed(seed)
        image = torch.randint(0, 256, (3, *scene.image_size), generator=g, dtype=torch.uint8)
        ground_truth = Instances(
            scene.image_size,
            gt_boxes=Boxes(scene.gt_boxes),
            gt_classes=torch.randint(0, settings.classes, (_OBJECTS,), generator=g),
            gt_masks=BitMasks(scene.gt_masks),
        )
        height, width = scene.output_size
        batch.append({"image": image, "instances": ground_truth, "height": height, "width": width})
    return batch


@torch.no_grad()
def calibrate(models: dict[str, nn.Module], batch: list[dict], settings: Settings) -> dict:
    """Set the score thresholds; returns the number of detections of each model."""
    rdsnet, retinanet, mask_rcnn = models["RDSNet"], models["RetinaNet"], models["Mask R-CNN"]
    scores = []
    stream, predictor = rdsnet.object_stream, mask_rcnn.roi_heads.box_predictor
    first = stream.register_forward_hook(
        lambda module, _, output: scores.append(torch.cat(output.logits, 1).sigmoid())
    )
    second = predictor.register_forward_hook(
        lambda module, _, output: scores.append(output[0].softmax(-1)[:, :-1])
    )
    for model in models.values():
        model.eval()
    for model in (rdsnet, mask_rcnn):
        inference_call(model, batch, settings)()
    first.remove()
    second.remove()
    thresholds = [_threshold(s, len(batch)) for s in scores]
    stream.score_threshold = retinanet.test_score_thresh = thresholds[0]
    predictor.test_score_thresh = thresholds[1]
    return {
        name: sum(len(x["instances"]) for x in inference_call(model, batch, settings)())
        for name, model in models.items()
    }


def _threshold(scores: torch.Tensor, images: int) -> float:
    """The score that ``_CANDIDATES`` pairs per image reach."""
    return (
        scores.float().flatten().topk(min(scores.numel(), _CANDIDATES * images)).values[-1].item()
    )


def calibrate_alone(rdsnet: nn.Module, batch: list[dict], settings: Settings) -> None:
    """Set the score threshold of an RDSNet that nothing else is compared with."""
    scores = []
    hook = rdsnet.eval().object_stream.register_forward_hook(
        lambda module, _, output: scores.append(torch.cat(output.logits, 1).sigmoid())
    )
    inference_call(rdsnet, batch, settings)()
    hook.remove()
    rdsnet.object_stream.score_threshold = _threshold(scores[0], len(batch))


def _as_shipped(model: nn.Module, batch: list[dict], settings: Settings) -> dict:
    """Times of the plain model and of what is made of it for prediction, in float32 and bf16."""
    model.eval()
    prepared = prepare_for_inference(model)
    float32, bf16 = replace(settings, dtype="float32"), replace(settings, dtype="bfloat16")
    calls = {
        "plain": inference_call(model, batch, float32),
        "as shipped, float32": inference_call(prepared, batch, float32),
        "as shipped, bf16": inference_call(prepared, batch, bf16),
    }
    return measure.alternate(calls, settings.device, 0, (settings.rounds, settings.rounds))


def inference_call(
    model: nn.Module, batch: list[dict], settings: Settings
) -> Callable[[], list[dict]]:
    def infer() -> list[dict]:
        with torch.no_grad(), _precision(settings):
            results = model(batch)
        for result in results:
            masks = result["instances"].get_fields().get("pred_masks")
            if hasattr(masks, "rle"):
                masks.rle()
        return results

    return infer


def training_call(
    model: nn.Module, batch: list[dict], settings: Settings
) -> Callable[[], dict[str, torch.Tensor]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    # The rate is too small to change what is measured.
    optimizer = torch.optim.SGD(trained, lr=1e-9, momentum=0.9)

    def train() -> dict[str, torch.Tensor]:
        optimizer.zero_grad()
        with _precision(settings):
            losses = model(batch)
        sum(losses.values()).backward()
        optimizer.step()
        return losses

    return train


def _precision(settings: Settings) -> torch.autocast:
    dtype = getattr(torch, settings.dtype)
    return torch.autocast(settings.device, dtype, enabled=dtype != torch.float32)
