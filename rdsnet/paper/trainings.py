"""What is trained for which table, with which config.

A family is a backbone and the configs on it: ``lite`` for CPUs and small data, ``R_50`` and
``R_101`` the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from detectron2 import model_zoo as detectron2_zoo

from rdsnet import model_zoo

FAMILIES = ("lite", "R_50", "R_101")
TABLES = (
    *("table1", "table2", "table3", "table4"),
    *("fig1", "fig3", "fig4", "fig5"),
    # what the paper leaves open: by the trainings of the tables, and with trainings of their own
    *("beyond", "detectors"),
)
# The paper's smaller scale: 600 of 800 px.
SMALL_SCALE = 0.75


@dataclass(frozen=True)
class Training:
    """One model.

    Attributes:
        name: of its folder.
        title: in tables.
        config: path of its yaml file.
        options: config keys and values on top of it.
        scale: of the input's sides, where images are resized.
        test_expands: expansions of the boxes that it is evaluated with (Table 3); None: the
            config's.
        is_rdsnet: has MBRM, which is fitted when training has ended.
        own_input: sees images in its own way (YOLACT: 550 x 550 px), not as RDSNet does.
        needed_for: tables and figures.
    """

    name: str
    title: str
    config: str
    needed_for: Sequence[str]
    options: Mapping[str, object] = field(default_factory=dict)
    scale: float = 1.0
    test_expands: Sequence[float | None] = (None,)
    is_rdsnet: bool = False
    own_input: bool = False

    def scaled(self, side: int) -> int:
        """A side of the input, pixels; 0 (no resizing) stays 0."""
        return round(side * self.scale)


# The detector alone: nothing is learnt about masks, and scores do not depend on them.
_DETECTOR_ALONE = {"MODEL.RDSNET.MASK_LOSS_WEIGHT": 0.0, "MODEL.RDSNET.MASK_SCORING": False}


def trainings(family: str, tables: Sequence[str], resized: bool) -> list[Training]:
    """The trainings that tables and figures need, each once, in the order in which they are run.

    Args:
        family: of ``FAMILIES``.
        tables: of ``TABLES``.
        resized: images are brought to a size, so that there is a smaller one to compare with.
    """
    peers = _peers(family)
    rdsnet = rdsnet_config(family)

    def of_s(train_expand: float, ohem: bool) -> dict:
        """RDSNet_s, of which rows 2 to 5 of Table 3 leave something out."""
        own = {"MODEL.RDSNET.TRAIN_EXPAND": train_expand, "MODEL.RDSNET.OHEM.ENABLED": ohem}
        described = peers["rdsnet_s"]
        options = {**described.get("options", {}), **own}
        return {**described, "options": options, "test_expands": (1.0, 1.2)}

    by_rdsnet = tuple(name for name in TABLES if name != "table3")
    two_stage = ("table1", "table2")
    of_table_3 = ("table3", "detectors")
    models = [
        Training("rdsnet", "RDSNet", rdsnet, by_rdsnet, test_expands=(1.0, None), is_rdsnet=True),
        Training("retinanet", "RetinaNet", rdsnet, ("table2",), _DETECTOR_ALONE),
        Training(
            "mask_rcnn",
            "Mask R-CNN",
            needed_for=(*two_stage, "fig4"),
            **peers["mask_rcnn"],
        ),
        Training(
            "yolact",
            "YOLACT",
            needed_for=("table1", "table3"),
            test_expands=(1.0,),
            **peers["yolact"],
        ),
        Training("corr", "YOLACT with correlation", needed_for=of_table_3, **of_s(1.0, False)),
        Training("corr_te", "the same with TE", needed_for=of_table_3, **of_s(1.5, False)),
        Training("rdsnet_s", "RDSNet_s", needed_for=("table1", *of_table_3), **of_s(1.5, True)),
    ]
    if resized:
        small = {"config": rdsnet, "scale": SMALL_SCALE}
        models += [
            Training(
                "rdsnet_600", "RDSNet, smaller scale", needed_for=two_stage, is_rdsnet=True, **small
            ),
            Training(
                "retinanet_600",
                "RetinaNet, smaller scale",
                needed_for=("table2",),
                options=_DETECTOR_ALONE,
                **small,
            ),
        ]
    models += [
        Training(name, title, rdsnet, ("detectors",), options, is_rdsnet=True)
        for name, title, options in _other_detectors(family)
    ]
    # The slowest last.
    models.append(
        Training(
            "cascade_mask_rcnn",
            "Cascade Mask R-CNN",
            needed_for=two_stage,
            **peers["cascade_mask_rcnn"],
        )
    )
    return [model for model in models if set(model.needed_for) & set(tables)]


_ATSS = "MODEL.RDSNET.ASSIGNMENT.NAME"
_GIOU = {"MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "giou", "MODEL.RDSNET.BOX_LOSS_WEIGHT": 2.0}
_RATIOS = "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"
_PIXELS = "MODEL.RDSNET.PIXEL_STREAM.IN_FEATURES"
_MASK_LOSS = "MODEL.RDSNET.MASK_LOSS.RESOLUTION"


def _other_detectors(family: str) -> list[tuple[str, str, dict[str, object]]]:
    """RDSNet with a better or plainer detector, with finer or coarser pixels: [(name, title,
    options)]. Between two of them one thing changes.
    """
    if family == "lite":  # has ATSS and fine pixels
        plainer = {_ATSS: "iou", _RATIOS: [[0.5, 1.0, 2.0]]}
        coarser = {_PIXELS: ["p3", "p4", "p5"], _MASK_LOSS: "grid"}
        return [
            ("rdsnet_plainer", "RDSNet, anchors assigned by IoU instead of ATSS", plainer),
            ("rdsnet_better", "RDSNet, boxes by GIoU loss", _GIOU),
            ("rdsnet_coarser", "RDSNet, pixels from P3, mask loss at stride 4", coarser),
        ]
    levels = ["res2", "res3", "res4", "res5"]
    # As in configs/plus: one square of eight strides at every location of P3..P7.
    better = {
        _ATSS: "atss",
        _RATIOS: [[1.0]],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[64], [128], [256], [512], [1024]],
        **_GIOU,
    }
    finer = {
        "MODEL.RESNETS.OUT_FEATURES": levels,
        "MODEL.FPN.IN_FEATURES": levels,
        _PIXELS: ["p2", "p3", "p4", "p5"],
        _MASK_LOSS: "image",
    }
    return [
        ("rdsnet_better", "RDSNet, ATSS and GIoU loss", better),
        ("rdsnet_finer", "RDSNet, pixels from P2, mask loss at the image's pixels", finer),
    ]


def rdsnet_config(family: str) -> str:
    """Path of the config of RDSNet.

    Raises:
        ValueError: there is no such family.
    """
    if family not in FAMILIES:
        raise ValueError(f"--models '{family}' is none of {', '.join(FAMILIES)}")
    if family == "lite":
        return model_zoo.get_config_file("lite/rdsnet_lite0_96.yaml")
    return model_zoo.get_config_file(f"COCO-InstanceSegmentation/rdsnet_{family}_FPN_1x.yaml")


def _peers(family: str) -> dict[str, dict]:
    """{model: ``config`` and what else :class:`Training` has of it}"""
    names = ("mask_rcnn", "cascade_mask_rcnn", "yolact", "rdsnet_s")
    if family == "lite":
        files = {name: f"paper/{name}_lite0_96.yaml" for name in names}
        return {name: {"config": model_zoo.get_config_file(file)} for name, file in files.items()}
    depth = int(family.removeprefix("R_"))
    two_stage = {
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.WEIGHTS": f"detectron2://ImageNetPretrained/MSRA/R-{depth}.pkl",
        "INPUT.MASK_FORMAT": "bitmask",
        # one scale, as the paper trains; Detectron2's configs draw from 640 to 800 px
        "INPUT.MIN_SIZE_TRAIN": (800,),
    }
    files = {
        "mask_rcnn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
        "cascade_mask_rcnn": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    }
    peers = {
        name: {"config": detectron2_zoo.get_config_file(file), "options": two_stage}
        for name, file in files.items()
    }
    for name in names[2:]:
        config = _project_config("yolact", f"{name}_{family}_FPN_550.yaml")
        peers[name] = {"config": config, "own_input": True}
    return peers


def _project_config(package: str, name: str) -> str:
    """A config of a project, in a checkout or installed (``setup.py`` says where they are)."""
    spec = find_spec(f"rdsnet.projects.{package}")
    folder = Path(spec.origin).parent if spec else Path()
    for configs in (folder / "configs", folder.parent / "configs"):
        if spec and (configs / name).is_file():
            return str(configs / name)
    raise FileNotFoundError(
        f"the project '{package}' with its config '{name}' is not there: install rdsnet with its "
        "projects, or leave out what needs it (--only)"
    )
