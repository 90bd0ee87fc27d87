"""From data to a trained model, through interruptions and on several processes.

Read in this order: ``trainer`` (Detectron2's trainer with RDSNet's data and evaluation),
``optimizer``, ``hooks``, ``interruption`` and ``non_finite`` (what happens between iterations),
``steps`` and ``processes`` (one iteration; several processes), ``resuming`` (what a checkpoint must
hold), ``launch`` and ``console`` (from the command line to a run, and what it says), ``on_ray``
(the same on a cluster), ``finish`` (what completes the model). For own data: ``base`` is the
config or the weights to begin with, ``data_parts`` reads the data, ``own_data`` splits it and puts
all together, ``data_remarks`` says what is odd about it, ``settings``, ``input_choice``,
``anchor_fit`` and ``image_channels`` decide. ``timing`` measures models in turns.
"""

from rdsnet.training.launch import argument_parser, main, run, setup
from rdsnet.training.trainer import Trainer

__all__ = ["Trainer", "argument_parser", "main", "run", "setup"]
