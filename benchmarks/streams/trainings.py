"""What is trained, and which trainings and evaluations make the rows of the tables."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Training:
    """What is trained. ``test_expands``: expansions of the boxes that it is evaluated with."""

    title: str
    config: str
    test_expands: tuple[float, ...] = (1.2,)


TABLE_3_CONFIGS = "projects/YOLACT/configs/Table3"
TRAININGS = {
    "retinanet": Training("RDSNet on RetinaNet", "configs/small/rdsnet_small_nuclei.yaml"),
    "lite": Training("RDSNet lite", "configs/lite/rdsnet_lite0_96_nuclei.yaml"),
    "fcos": Training("RDSNet on FCOS", "projects/FCOS/configs/rdsnet_fcos_small_nuclei.yaml"),
    "yolact": Training("YOLACT", f"{TABLE_3_CONFIGS}/row_1.yaml", (1.0,)),
    "corr": Training("YOLACT with correlation", f"{TABLE_3_CONFIGS}/row_2.yaml", (1.0, 1.2)),
    "corr_te": Training("the same with TE", f"{TABLE_3_CONFIGS}/row_4.yaml", (1.0, 1.2)),
    "rdsnet_s": Training("RDSNet_s", f"{TABLE_3_CONFIGS}/row_7.yaml", (1.0, 1.2)),
}
# Streams on the same budget, with the expansion that they are evaluated with.
COMPARED = [("retinanet", 1.2), ("lite", 1.2), ("fcos", 1.2), ("yolact", 1.0), ("rdsnet_s", 1.2)]


@dataclass(frozen=True)
class Row:
    """A row of Table 3: correlation, training expansion (TE), OHEM, inference expansion (IE)."""

    training: str
    test_expand: float
    marks: tuple[bool, bool, bool, bool]
    paper: float  # mask AP on COCO val2017


# The check marks of rows 2 to 6 as the text of Sec. 4.2 explains them: IE alone lowers AP (2 to 3),
# not after TE (5); OHEM comes last.
TABLE_3 = [
    Row("yolact", 1.0, (False, False, False, False), 29.9),
    Row("corr", 1.0, (True, False, False, False), 31.0),
    Row("corr", 1.2, (True, False, False, True), 30.0),
    Row("corr_te", 1.0, (True, True, False, False), 30.7),
    Row("corr_te", 1.2, (True, True, False, True), 30.8),
    Row("rdsnet_s", 1.0, (True, True, True, False), 31.6),
    Row("rdsnet_s", 1.2, (True, True, True, True), 31.8),
]
