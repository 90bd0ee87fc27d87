"""``--tile auto``: which images are seen in tiles, and in which."""

from itertools import chain

import numpy as np
import pytest
import torch
from helpers.predicting import picture

import rdsnet
from rdsnet.checkpoint.description import save_model
from rdsnet.checkpoint.trained import learnt_object_sizes
from rdsnet.cli import main
from rdsnet.data.object_sizes import ObjectSizes
from rdsnet.prediction.large import OVERLAP, TILE
from rdsnet.prediction.tile_choice import chosen_tiles, spelled


@pytest.fixture
def cfg():
    cfg = rdsnet.get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 800, 1333
    return cfg


CELLS = ObjectSizes((9.0, 20.0, 45.0), (9.0, 20.0, 45.0))  # trained on images of 800 px
PHOTOGRAPHS = ObjectSizes((60.0, 400.0, 1600.0), (15.0, 100.0, 400.0))  # of 3200 px


def test_without_sizes_the_share_of_the_resize_decides(cfg):
    assert chosen_tiles(cfg, None, (1599, 1599)).side is None
    large = chosen_tiles(cfg, None, (1700, 1700))
    assert (large.side, large.overlap, large.scale) == (TILE, OVERLAP, 1.0)
    assert "since it is too large at once" in spelled(large)


def test_cells_are_lost_where_large_objects_are_not(cfg):
    """A quarter of CELLS is below 12.8 px, which 800/1700 makes less than 0.7 * 9 px."""
    cells = chosen_tiles(cfg, CELLS, (1700, 1700))
    assert cells.side == TILE and cells.scale == 1
    assert "objects as large as those it was trained on (9 to 45 px)" in spelled(cells)
    assert "below 6.3 px" in spelled(cells)
    assert chosen_tiles(cfg, CELLS, (1500, 1500)).side is None
    # The same image shows large objects well: 1600 px become 800.
    objects = ObjectSizes((100.0, 200.0, 400.0), (25.0, 50.0, 100.0))
    assert chosen_tiles(cfg, objects, (1700, 1700)).side is None
    # Images like those of the training are seen as there, whatever their size.
    assert chosen_tiles(cfg, PHOTOGRAPHS, (3200, 4000)).side is None


def test_tiles_show_objects_as_large_as_in_training_with_room_for_the_largest(cfg):
    tiles = chosen_tiles(cfg, PHOTOGRAPHS, (20_000, 30_000))
    assert tiles.scale == 0.25 and tiles.side == 4 * TILE
    assert tiles.overlap == 2 * 1600
    assert "8192 px that overlap by 3200 px, resized by 0.25" in spelled(tiles)
    assert chosen_tiles(cfg, PHOTOGRAPHS, (20_000, 30_000), overlap=100).overlap == 100
    huge = ObjectSizes((60.0, 400.0, 6000.0), (60.0, 400.0, 6000.0))
    assert chosen_tiles(cfg, huge, (30_000, 30_000)).overlap == TILE // 2


def test_more_pixels_than_a_tile_has_are_never_seen_at_once():
    cfg = rdsnet.get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 0  # no resizing
    tiles = chosen_tiles(cfg, CELLS, (3000, 3000))
    assert tiles.side == TILE and "too many pixels" in spelled(tiles)


def test_the_checkpoint_is_asked(tmp_path):
    stored = rdsnet.get_cfg()
    stored.DATASETS.OBJECT_SIZES.IN_IMAGES = [9.0, 20.0, 45.0]
    stored.DATASETS.OBJECT_SIZES.IN_INPUT = [9.0, 20.0, 45.0]
    save_model(tmp_path / "model.pth", {"weight": torch.zeros(1)}, stored)
    cfg = rdsnet.get_cfg()
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    assert learnt_object_sizes(cfg) == CELLS
    cfg.MODEL.WEIGHTS = "https://example.org/model.pth"
    assert learnt_object_sizes(cfg) is None


def test_the_command_says_what_decided(model_files, tmp_path, capsys):
    """The config shrinks 300 x 700 px to 69 x 160: 20 px become 4.6, 90 px become 21."""
    np.save(tmp_path / "image.npy", picture(300, 700))
    words = ["predict", "--config-file", model_files["config"], "--tile", "auto"]
    words += ["--weights", model_files["weights"], "--input", str(tmp_path / "image.npy")]
    words += ["--output", str(tmp_path / "out"), "--max-detections", "6", "--opts"]
    keys = ("DATASETS.OBJECT_SIZES.IN_IMAGES", "DATASETS.OBJECT_SIZES.IN_INPUT")
    small = ["[9.0, 20.0, 45.0]", "[9.0, 20.0, 45.0]"]
    assert main([*words, *chain.from_iterable(zip(keys, small))]) == 0
    assert "in tiles of 2048 px that overlap by 128 px, since at once" in capsys.readouterr().err
    large = ["[30.0, 90.0, 200.0]", "[7.0, 21.0, 47.0]"]
    assert main([*words, *chain.from_iterable(zip(keys, large))]) == 0
    assert "small enough to be seen at once: most of objects" in capsys.readouterr().err
