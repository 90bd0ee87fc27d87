"""Training, evaluation and prediction runs."""

from rdsnet.engine.launch import load_config, main, run, setup
from rdsnet.engine.trainer import Trainer

__all__ = ["Trainer", "load_config", "main", "run", "setup"]
