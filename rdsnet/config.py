"""Every config key that RDSNet adds to Detectron2's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg as get_detectron2_cfg


class SafeCfgNode(CN):
    """Detectron2's CfgNode, whose files hold data only: yaml that would run code is refused."""

    # yacs compares types of nodes: those below the top are to be Detectron2's, as whoever adds keys
    # to a config makes them.
    @classmethod
    def _create_config_tree_from_dict(cls, dic: dict, key_list: list[str]) -> dict:
        return CN._create_config_tree_from_dict(dic, key_list)

    @classmethod
    def _decode_cfg_value(cls, value: object) -> object:
        return CN._decode_cfg_value(value)

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        super().merge_from_file(cfg_filename, allow_unsafe=allow_unsafe)

    def merge_from_other_cfg(self, cfg_other: CN) -> None:
        """As in Detectron2, after a look at all keys.

        Raises:
            KeyError: some are unknown; all are named, with what may be the reason.
        """
        unknown = [
            key
            for key in flat(cfg_other).keys() - flat(self).keys()
            if not (self.key_is_deprecated(key) or self.key_is_renamed(key))
        ]
        if unknown and not self.is_new_allowed():
            raise KeyError(
                f"unknown keys {', '.join(sorted(unknown))}. They are misspelt, or belong to a "
                "project or a version of rdsnet that was there when this was written and is not "
                "here: install it, or remove them. Projects here: "
                f"{', '.join(_projects()) or 'none'}."
            )
        super().merge_from_other_cfg(cfg_other)


def flat(cfg: CN) -> dict[str, object]:
    """{full key: value} of all keys of a config."""
    values = {}
    for key, value in cfg.items():
        if isinstance(value, dict):
            values |= {f"{key}.{inner}": v for inner, v in flat(value).items()}
        else:
            values[key] = value
    return values


def backbone_lr_factor(values: Mapping[str, object]) -> float:
    """``SOLVER.BACKBONE_LR_FACTOR`` of a :func:`flat` config; 1 where the backbone brings nothing.

    That is with random weights, and with images that are no photographs, whose first layer is new.

    Raises:
        ValueError: it is negative.
    """
    factor = values["SOLVER.BACKBONE_LR_FACTOR"]
    if factor < 0:
        raise ValueError(f"SOLVER.BACKBONE_LR_FACTOR must not be negative, got {factor}")
    sees_photographs = values["INPUT.CHANNELS"] == 3 and values["INPUT.SCALING"] == "none"
    return factor if values["MODEL.WEIGHTS"] and sees_photographs else 1.0


class _Registered:
    """Kept beside the keys of a config, so that unpickling it registers the model.

    A config goes to processes that are not forks of this one, as CUDA needs them, in a pickle; they
    have imported nothing of what registers classes with Detectron2.
    """

    def __reduce__(self) -> tuple[Callable[[], _Registered], tuple[()]]:
        return _register, ()


@cache
def _register() -> _Registered:
    """Register META_ARCH RDSNet and its parts, and what the installed projects register."""
    import_module("rdsnet.modeling")
    _projects()
    return _Registered()


@cache
def _projects() -> dict[str, Callable[[CN], None]]:
    """{name: function that adds its config keys} of the installed projects; imports them."""
    projects = {entry.name: entry for entry in entry_points(group="rdsnet.projects")}
    return {name: projects[name].load() for name in sorted(projects)}


def add_rdsnet_config(cfg: CN) -> None:
    """Add the keys of RDSNet, with the paper's values, to a Detectron2 config.

    Whoever configures the model is about to build it, so this also registers it, here and in every
    process that the config is sent to. The keys of all installed projects are added too: a config
    that a training has written has them, whichever model it is of.
    """
    vars(cfg)["_registered"] = _register()

    # Your own data in COCO format: a list of [name, annotation json, image folder]. Each is
    # registered under its name, which then serves in DATASETS.TRAIN and DATASETS.TEST. With
    # MODEL.RETINANET.NUM_CLASSES -1 the number of classes is taken from the first json.
    cfg.DATASETS.COCO_FILES = []
    # What to do with annotations that cannot be used (a box without area, a polygon of fewer than
    # three points, ...) in those files: "error" names the first ones and stops, "skip" leaves
    # them out and says how many.
    cfg.DATASETS.INVALID_ANNOTATIONS = "error"
    # Whether crowds (iscrowd 1) in those files are objects like all others, as where a tool writes
    # its brush masks so. False: COCO's meaning, regions of many things; they are not learnt, and
    # what is found in them does not count in evaluation.
    cfg.DATASETS.CROWDS_ARE_OBJECTS = False
    # [category id, name] of every class of the model, in order. Taken from the data when training
    # begins, and kept with the model, which then needs no json to name what it finds.
    cfg.DATASETS.CLASSES = []
    # How large the training's objects are: percentiles 5, 50 and 95 of the square root of the area
    # of their boxes, in pixels of the images and of the network's input. Measured when training
    # ends, and kept in model_best.pth; "rdsnet predict --tile auto" decides by them. []: not known.
    cfg.DATASETS.OBJECT_SIZES = CN()
    cfg.DATASETS.OBJECT_SIZES.IN_IMAGES = []
    cfg.DATASETS.OBJECT_SIZES.IN_INPUT = []

    # Write OUTPUT_DIR/report.html at the end of a training run and after an evaluation: curves, APs
    # in parts, kinds of errors, the best and worst images (docs/evaluate.md).
    cfg.TEST.REPORT = True

    # How images and annotations become the model's input: a name in
    # rdsnet.data.mapper.DATASET_MAPPER_REGISTRY.
    cfg.DATASETS.MAPPER = "RDSNetDatasetMapper"

    # How training images are varied, a name in rdsnet.data.augmentations.PRESETS: "light" as
    # Detectron2 does (INPUT.RANDOM_FLIP, sizes), "none", "strong", "microscopy", "aerial".
    cfg.INPUT.AUGMENTATION = "light"
    # Probability that a training image becomes a mosaic of parts of four (rdsnet.data.mosaic): for
    # models that learn from small crops and are to see large images.
    cfg.INPUT.MOSAIC = 0.0

    # Channels of an image. 3, if they are not scaled: photographs, in the order INPUT.FORMAT. Else
    # images are the arrays of their files, channels in the files' order; MODEL.PIXEL_MEAN and
    # PIXEL_STD have a number for each (docs/own-data.md).
    cfg.INPUT.CHANNELS = 3
    # How numbers become 0 .. 255: "none", those of 8 bits as they are; "dataset", by
    # SCALE_RANGES; "image", by PERCENTILES of every channel of every image.
    cfg.INPUT.SCALING = "none"
    # Percentiles of pixels that become 0 and 255; what lies beyond is cut off.
    cfg.INPUT.PERCENTILES = (0.1, 99.9)
    # With "dataset": [low, high] of every channel, the numbers that become 0 and 255. "rdsnet train
    # --data" takes PERCENTILES of the training images.
    cfg.INPUT.SCALE_RANGES = []

    # Images with more pixels are refused: a file of a few kB can unpack to gigabytes.
    cfg.INPUT.MAX_PIXELS = 178_956_970

    # "SGD" (with momentum; the paper's) or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Learning rate of the backbone below the FPN, as a share of BASE_LR: with less than 1 it keeps
    # more of what it brings. What brings nothing learns at BASE_LR: random weights (MODEL.WEIGHTS
    # ""), and those for images that are no photographs, since their first layer is new.
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0
    cfg.SOLVER.EMA = CN()
    # Exponential moving average of the weights over iterations: what is evaluated and kept as
    # model_best.pth. Checkpoints to resume from hold both.
    cfg.SOLVER.EMA.ENABLED = False
    # Weight of the past; smaller in the first iterations: min(DECAY, (1 + n) / (10 + n)).
    cfg.SOLVER.EMA.DECAY = 0.999

    # A metric of the evaluation, such as "segm/AP" (mask AP): the model that has the most of it at
    # any evaluation (TEST.EVAL_PERIOD) is kept as OUTPUT_DIR/model_best.pth. "": none is kept.
    cfg.TEST.BEST_METRIC = ""
    # Stop when so many evaluations in a row have not improved BEST_METRIC. 0: never.
    cfg.TEST.PATIENCE = 0

    # For MODEL.BACKBONE.NAME build_retinanet_timm_fpn_backbone: a model of timm under an FPN.
    # Features are named by their strides in MODEL.FPN.IN_FEATURES: res2 (4), res3 (8), ...
    # Pretrained weights are MODEL.WEIGHTS "timm://NAME" (rdsnet.checkpoint.pretrained); then
    # MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and INPUT.FORMAT have to be theirs.
    cfg.MODEL.TIMM = CN()
    # Any model of timm.list_models() with such features that takes images of any size.
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # Its BatchNorm in training: "FrozenBN" keeps the statistics and factors of MODEL.WEIGHTS (with
    # MODEL.WEIGHTS "" there are none, and it is trained); "BN", "SyncBN": trained always. All else
    # in the backbone is trained: MODEL.BACKBONE.FREEZE_AT is for Detectron2's ResNets.
    cfg.MODEL.TIMM.NORM = "FrozenBN"

    cfg.MODEL.RDSNET = CN()
    # D: numbers in a pixel's representation; an object has 2 x D (background, foreground).
    # Paper: 32.
    cfg.MODEL.RDSNET.REPRESENTATION_DIM = 32
    # What masks start from: "none" (paper), or "ellipse" in the box, which every object then bends
    # by six numbers of its own (rdsnet/modeling/mask_prior.py).
    cfg.MODEL.RDSNET.MASK_PRIOR = "none"
    # Whether one tower of MODEL.RETINANET.NUM_CONVS convolutions serves classes, boxes and
    # representations, instead of one for each (the paper's).
    cfg.MODEL.RDSNET.SHARED_TOWER = False
    # The detector: a name in rdsnet.modeling.OBJECT_STREAM_REGISTRY. Whichever it is, it reads what
    # all detectors have in common from MODEL.RETINANET: NUM_CLASSES, IN_FEATURES,
    # SCORE_THRESH_TEST, TOPK_CANDIDATES_TEST, NMS_THRESH_TEST.
    cfg.MODEL.RDSNET.OBJECT_STREAM = "RetinaNetStream"

    cfg.MODEL.RDSNET.ASSIGNMENT = CN()
    # Which anchors of the RetinaNet stream learn an object: "iou", those that overlap it by
    # MODEL.RETINANET.IOU_THRESHOLDS (paper), or "atss", adaptively chosen ones among the nearest,
    # for which one square anchor per location is enough.
    cfg.MODEL.RDSNET.ASSIGNMENT.NAME = "iou"
    # "atss": nearest anchors of every level to choose from. ATSS paper: 9 per anchor of a location.
    cfg.MODEL.RDSNET.ASSIGNMENT.CANDIDATES_PER_LEVEL = 9

    # What the RetinaNet stream's scores learn: "focal", whether there is an object (paper), or
    # "quality_focal", how well the predicted box overlaps it, which ranks detections better.
    cfg.MODEL.RDSNET.CLASSIFICATION_LOSS = "focal"

    cfg.MODEL.RDSNET.PIXEL_STREAM = CN()
    # A name in rdsnet.modeling.PIXEL_STREAM_REGISTRY.
    cfg.MODEL.RDSNET.PIXEL_STREAM.NAME = "PixelStream"
    # Pyramid levels that are merged. Paper: from P3 on. From P2 on, if the backbone has it, masks
    # are finer and training takes longer.
    cfg.MODEL.RDSNET.PIXEL_STREAM.IN_FEATURES = ["p3", "p4", "p5"]
    # Pixels of the network's input per cell of the representations: they are up-sampled from the
    # stride of the finest level (P2: 4, P3: 8), which it divides. Paper: 4.
    cfg.MODEL.RDSNET.PIXEL_STREAM.STRIDE = 4
    # Channels of its convolutions. Paper: 256.
    cfg.MODEL.RDSNET.PIXEL_STREAM.CONV_DIM = 256
    # Their normalisation, as in Detectron2's get_norm ("" for none).
    cfg.MODEL.RDSNET.PIXEL_STREAM.NORM = "GN"

    # Expansion of boxes to windows: of ground-truth boxes in training, of regressed boxes at
    # inference. Paper: 1.5 and 1.2.
    cfg.MODEL.RDSNET.TRAIN_EXPAND = 1.5
    cfg.MODEL.RDSNET.TEST_EXPAND = 1.2
    # A pixel belongs to a mask when its foreground probability is larger. Paper: 0.4.
    cfg.MODEL.RDSNET.MASK_THRESHOLD = 0.4
    # Choose it when training ends, by the masks of DATASETS.TEST (where there is any); the config
    # in model_best.pth then has it.
    cfg.MODEL.RDSNET.FIT_MASK_THRESHOLD = False
    # Of every class the lowest score that prediction shows (--score-threshold auto), one number per
    # class, in order; []: 0.5 for all. Evaluation does not look at them: AP needs low scores.
    cfg.MODEL.RDSNET.SCORE_THRESHOLDS = []
    # Choose them when training ends, where F1 on DATASETS.TEST is best; the config in
    # model_best.pth then has them.
    cfg.MODEL.RDSNET.FIT_SCORE_THRESHOLDS = False

    # Multiply the scores of detections by how sure their masks are of their pixels (paper: no).
    cfg.MODEL.RDSNET.MASK_SCORING = False

    cfg.MODEL.RDSNET.MASK_LOSS = CN()
    # Where the mask loss is taken. "grid": at the cells of the representations, on ground-truth
    # masks brought to them (paper; masks come out a little too small). "image": at the pixels of
    # the network's input, to which the logits are interpolated as at inference.
    cfg.MODEL.RDSNET.MASK_LOSS.RESOLUTION = "grid"

    cfg.MODEL.RDSNET.OHEM = CN()
    # Online hard example mining: the mask loss keeps only the hardest background pixels.
    cfg.MODEL.RDSNET.OHEM.ENABLED = True
    # Background pixels kept per foreground pixel of an object. Paper: 1.
    cfg.MODEL.RDSNET.OHEM.NEGATIVES_PER_POSITIVE = 1.0
    # Positive anchors per image that learn masks, drawn at random if there are more.
    cfg.MODEL.RDSNET.MAX_TRAIN_MASKS = 100

    # lambda_r and lambda_m of Eq. 8. Paper: 1.
    cfg.MODEL.RDSNET.BOX_LOSS_WEIGHT = 1.0
    cfg.MODEL.RDSNET.MASK_LOSS_WEIGHT = 1.0

    cfg.MODEL.RDSNET.MBRM = CN()
    # Refine box edges from the masks at inference. False leaves boxes as regressed.
    cfg.MODEL.RDSNET.MBRM.ENABLED = True
    # "mbrm"; "direct": the minimum enclosing rectangle of the mask, the paper's baseline; "none":
    # as ENABLED False.
    cfg.MODEL.RDSNET.MBRM.METHOD = "mbrm"
    # Width of the prior around a regressed edge, as a share of the box's size. Paper: 0.05.
    cfg.MODEL.RDSNET.MBRM.GAMMA = 0.05
    # Smallest width of the prior, pixels. Authors' code: 1.
    cfg.MODEL.RDSNET.MBRM.MIN_SIGMA = 1.0
    # s: an edge is recognised from 2 s + 1 pixels. Paper: 4.
    cfg.MODEL.RDSNET.MBRM.RADIUS = 4
    # Where in its posterior an edge is: "argmax", the most probable pixel (paper), or
    # "expectation", the mean around it, to a fraction of a pixel.
    cfg.MODEL.RDSNET.MBRM.READOUT = "argmax"

    # "rdsnet fit-mbrm": the kernel is fitted to the finished model's masks of DATASETS.TRAIN.
    cfg.MODEL.RDSNET.MBRM.FIT = CN()
    # Fit when training ends; the kernel goes into model_best.pth if box AP on DATASETS.TEST (where
    # there is any) is not lower with it.
    cfg.MODEL.RDSNET.MBRM.FIT.AFTER_TRAINING = False
    # Then choose GAMMA and READOUT too, or METHOD "none": by the boxes of DATASETS.TEST (of TRAIN
    # where there is no other). False: they stay as they are here (paper).
    cfg.MODEL.RDSNET.MBRM.FIT.CHOOSE = False
    # Steps of the optimizer. Paper: 1000.
    cfg.MODEL.RDSNET.MBRM.FIT.MAX_ITER = 1000
    # Objects per step, drawn at random.
    cfg.MODEL.RDSNET.MBRM.FIT.OBJECTS_PER_BATCH = 256
    # First learning rate of Adam; it falls linearly to 0.
    cfg.MODEL.RDSNET.MBRM.FIT.BASE_LR = 0.05
    # Images of DATASETS.TRAIN that the model is run on, drawn at random if there are more; -1: all.
    # Paper: 1000 steps of 8 images.
    cfg.MODEL.RDSNET.MBRM.FIT.MAX_IMAGES = 8000

    cfg.MODEL.RDSNET.INFERENCE = CN()
    # What rdsnet's Predictor and evaluations compute convolutions in: "float32"; "bf16", "fp16"
    # (results move a little, see docs/predict.md); "auto": bf16 where the processor has
    # AMX, or AVX512_BF16 that is not Intel's, else float32, as on a GPU. "rdsnet predict" and "app"
    # set it by --precision, whose default is auto. Training has SOLVER.AMP.
    cfg.MODEL.RDSNET.INFERENCE.PRECISION = "float32"

    # Whether Instances.pred_masks is a dense (N, H, W) bool tensor, as Detectron2's tools expect,
    # or rdsnet.ops.CompactMasks, which costs neither the time nor the memory.
    cfg.MODEL.RDSNET.DENSE_MASKS = True

    for add_keys in _projects().values():
        add_keys(cfg)


def get_cfg() -> CN:
    """Detectron2's default config with the keys of RDSNet and of all installed projects.

    ``MODEL.DEVICE`` is a GPU when torch sees one, else the CPU. Its ``merge_from_file`` takes safe
    yaml only.
    """
    cfg = SafeCfgNode(get_detectron2_cfg())
    add_rdsnet_config(cfg)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg
