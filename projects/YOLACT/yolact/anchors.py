"""YOLACT's anchors: squares, evenly spread over the image."""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from torch import Tensor


@ANCHOR_GENERATOR_REGISTRY.register()
class SquareAnchorGenerator(DefaultAnchorGenerator):
    """Detectron2's generator with the squares of YOLACT's released code.

    An aspect ratio r scales the side of the square, size * sqrt(r): the released models were
    trained with such anchors, by an oversight that the authors kept. The cells of a level divide
    the input evenly, so 69 cells on 550 px are 550/69 = 7.97 px apart, not 8.

    Args:
        input_size: height and width of the network's input, pixels; 0 where cells are as far apart
            as the level's stride.
        Others: as in Detectron2's DefaultAnchorGenerator. Anchors lie at the centres of cells.
    """

    @configurable
    def __init__(self, *, input_size: int = 0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.input_size = input_size

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        return {
            **super().from_config(cfg, input_shape),
            "input_size": cfg.MODEL.YOLACT.INPUT_SIZE,
        }

    def generate_cell_anchors(
        self, sizes: tuple[float, ...] = (24,), aspect_ratios: tuple[float, ...] = (1, 0.5, 2)
    ) -> Tensor:
        """Anchors around (0, 0), (A, 4); order: size, then aspect ratio."""
        sides = torch.tensor([size * math.sqrt(r) for size in sizes for r in aspect_ratios])
        return sides[:, None] / 2 * torch.tensor([-1.0, -1.0, 1.0, 1.0])

    def spacing(self, level: int, grid: tuple[int, int]) -> tuple[float, float]:
        """Pixels from cell to cell of a level with (h, w) cells: vertically, horizontally."""
        if self.input_size:
            return self.input_size / grid[0], self.input_size / grid[1]
        return self.strides[level], self.strides[level]

    def _grid_anchors(self, grid_sizes: list[list[int]]) -> list[Tensor]:
        """Per level (Hi * Wi * A, 4); order: y, x, anchor."""
        anchors = []
        for level, (grid, around_zero) in enumerate(zip(grid_sizes, self.cell_anchors)):
            y, x = (
                (torch.arange(cells, device=around_zero.device) + 0.5) * step
                for cells, step in zip(grid, self.spacing(level, grid))
            )
            y, x = torch.meshgrid(y, x, indexing="ij")
            centres = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
            anchors.append((centres + around_zero).view(-1, 4))
        return anchors
