"""From data to a trained model, through interruptions and on several processes.

Read in this order: ``trainer`` (Detectron2's trainer with RDSNet's data and evaluation), ``hooks``
and ``interruption`` (what happens between iterations), ``steps`` and ``processes`` (one iteration;
several processes), ``launch`` (from the command line to a run), ``finish`` (what completes the
model). For own data: ``base`` is the config or the weights to begin
with, ``own_data`` reads and splits the data, ``settings`` and ``anchor_fit`` decide.
"""

from rdsnet.training.launch import argument_parser, main, run, setup
from rdsnet.training.trainer import Trainer

__all__ = ["Trainer", "argument_parser", "main", "run", "setup"]
