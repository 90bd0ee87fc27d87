"""Training, evaluation and prediction runs."""

from rdsnet.engine.launch import argument_parser, load_config, main, run, setup
from rdsnet.engine.trainer import Trainer

__all__ = ["Trainer", "argument_parser", "load_config", "main", "run", "setup"]
