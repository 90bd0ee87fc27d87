"""How `rdsnet train --data` varies images, by how objects lie and how often they are seen."""

from dataclasses import replace

import numpy as np
from helpers.data_statistics import statistics

from rdsnet.training.base import base_config
from rdsnet.training.settings import Wishes, derive_settings


def elongated(logarithms, classes):
    """A data set whose boxes have these logarithms of width / height."""
    width = 40 * np.exp(np.array(logarithms) / 2)
    height = 40 * np.exp(-np.array(logarithms) / 2)
    boxes = np.stack([0 * width, 0 * width, width, height], axis=1)
    data = statistics([(200, 200)], boxes, classes=max(classes) + 1)
    return replace(data, classes=np.array(classes))


def test_only_objects_that_lie_in_every_direction_are_turned():
    rng = np.random.default_rng(0)
    any_way = rng.normal(0, 0.9, 300)
    cfg = base_config("small")[1]
    turned = derive_settings(cfg, elongated(any_way, [0] * 300), None, Wishes())
    assert turned.options["INPUT.AUGMENTATION"] == "microscopy"
    assert "every direction" in dict(turned.notes)["Variation"]
    # 12 passes are too few for that.
    short = derive_settings(cfg, elongated(any_way, [0] * 300), None, Wishes(epochs=12))
    assert "INPUT.AUGMENTATION" not in short.options
    assert "seen about 12 times" in dict(short.notes)["Variation"]
    # Nor are 300 of crops that are a sixteenth of the image each, whoever asked for them.
    cfg.INPUT.CROP.ENABLED = True
    for kind, size in (("absolute", (50, 50)), ("relative", (0.25, 0.25))):
        cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = kind, size
        wishes = Wishes(epochs=300)
        crops = derive_settings(cfg, elongated(any_way, [0] * 300), None, wishes)
        assert "seen about 19 times" in dict(crops.notes)["Variation"]
    cfg.INPUT.CROP.ENABLED = False
    # People among them, or all of them; and too few to know.
    both = elongated([*any_way, *rng.normal(-0.5, 0.5, 40)], [0] * 300 + [1] * 40)
    upright = elongated(rng.normal(-0.5, 0.5, 300), [0] * 300)
    few = elongated(any_way[:15], [0] * 15)
    for data in (both, upright, few):
        settings = derive_settings(cfg, data, None, Wishes())
        assert "INPUT.AUGMENTATION" not in settings.options
    # A handful of another class does not decide.
    rare = elongated([*any_way, *[-1.0] * 5], [0] * 300 + [1] * 5)
    assert rare.lies_any_way
    # What somebody has chosen stays.
    cfg.INPUT.AUGMENTATION = "none"
    kept = derive_settings(cfg, elongated(any_way, [0] * 300), None, Wishes())
    assert "INPUT.AUGMENTATION" not in kept.options
