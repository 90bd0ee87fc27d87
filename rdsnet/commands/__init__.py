"""Subcommands of ``rdsnet``, one module each.

A module ``fit_mbrm`` here, named "fit-mbrm" in :data:`COMMANDS`, is the subcommand. It has

* a docstring whose first line is the summary and whose rest, with an example, ends its --help;
* ``add_arguments(parser)``, which must not import torch or Detectron2, so that --help is fast;
* ``run(args)``, which does, and returns an exit status (None: 0).
"""

# In the order of `rdsnet --help`.
COMMANDS = (
    "check-data",
    "convert-data",
    "merge",
    "train",
    "eval",
    "predict",
    "app",
    "serve",
    "models",
    "fit-mbrm",
    "convert",
    "export",
    "benchmark",
    "paper",
    "doctor",
)
