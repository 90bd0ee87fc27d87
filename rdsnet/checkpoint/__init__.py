"""Checkpoints: written so that they survive interruptions, read without running their content.

Read in this order: ``files`` and ``unpickler`` (reading safely), ``trust`` (reading otherwise, on
demand), ``atomic`` (writing all or nothing), ``checkpointer`` (the checkpoints of a training),
``description`` (the config in a checkpoint), ``configs`` and ``changes`` (the config of a run, and
what may differ from that of its checkpoint), ``trained`` (a trained model from its file),
``exported`` (exported files in the place of checkpoints), ``shipped`` and ``packing`` (models in
the box), ``pretrained`` (weights of a backbone alone), ``transfer`` and ``stems`` (a start from
other classes and other channels), ``mmdet`` (the authors' names). Nothing is imported before it is
asked for: ``Checkpointer``, ``load_config`` and ``load_model`` need Detectron2, the rest torch
alone.
"""

from importlib import import_module

_HOMES = {
    "Checkpointer": "checkpointer",
    "convert_mmdet_state_dict": "mmdet",
    "load_config": "configs",
    "load_model": "trained",
    "read_checkpoint": "files",
    "read_state_dict": "files",
}
__all__ = [*_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
