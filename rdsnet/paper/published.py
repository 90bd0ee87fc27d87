"""The figures of the paper (Wang et al., AAAI 2020), in percent.

Tables 1 and 2 are of COCO test-dev, Tables 3 and 4 of COCO val2017. ``None`` where the paper has
none.
"""

from __future__ import annotations

from typing import NamedTuple


class APs(NamedTuple):
    """AP, AP50, AP75, and AP of small, medium and large objects."""

    AP: float
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None


METRICS = APs._fields

# Mask AP, shorter side 800 px, 12 epochs, R-101, unless said otherwise.
TABLE_1 = {
    "mask_rcnn": APs(36.2, 58.3, 38.6, 16.7, 38.8, 51.5),
    "yolact": APs(29.8, 48.5, 31.2, 9.9, 31.3, 47.7),  # 550 px, 48 epochs
    "rdsnet_s": APs(32.1, 53.0, 33.4, 11.0, 33.8, 51.0),  # 550 px, 48 epochs
    "tensormask": APs(37.3, 59.5, 39.5, 17.5, 39.3, 51.6),  # 72 epochs
    "rdsnet": APs(34.6, 55.8, 36.7, 14.9, 37.4, 50.3),
}
# Box AP, R-101.
TABLE_2 = {
    "mask_rcnn": APs(39.7, 61.6, 43.2, 23.0, 43.2, 49.7),
    "cascade_mask_rcnn": APs(43.1, 61.5, 46.9, 24.0, 45.9, 55.4),
    "retinanet": APs(38.1, 58.5, 40.8, 21.2, 41.5, 48.2),
    "rdsnet, + mask": APs(39.4, 60.1, 42.5, 22.1, 42.6, 49.9),
    "rdsnet, + MBRM": APs(40.3, 60.1, 43.0, 22.1, 43.5, 51.5),
    # shorter side 600 px
    "retinanet_600": APs(36.0, 55.2, 38.7, 17.4, 39.6, 49.7),
    "rdsnet_600, + mask": APs(36.1, 56.7, 38.5, 17.3, 38.9, 51.3),
    "rdsnet_600, + MBRM": APs(37.3, 56.7, 39.3, 17.0, 40.0, 54.0),
}
# Mask AP of the seven rows.
TABLE_3 = (29.9, 31.0, 30.0, 30.7, 30.8, 31.6, 31.8)
# Box AP of the boxes as regressed, the rectangles around the masks, and MBRM's.
TABLE_4 = {
    "none": APs(35.9, None, None, 17.1, 39.7, 53.3),
    "direct": APs(34.2, None, None, 11.8, 37.7, 55.1),
    "MBRM": APs(37.2, None, None, 16.9, 40.8, 56.5),
}
# What the paper chose by Fig. 5.
GAMMA, RADIUS = 0.05, 4
