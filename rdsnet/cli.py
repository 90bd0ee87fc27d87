"""The command ``rdsnet``: one subcommand per module of :mod:`rdsnet.commands`.

Mistakes in what the user gave (a missing file, a config value that does not fit) are reported in
one message without traceback, and the exit status is 2. ``--traceback``, or RDSNET_TRACEBACK=1 in
the environment, shows where they arose. Where nobody reads the output any more (``| head``), a
command ends without a word; a training goes on, its log has everything.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from rdsnet import __version__, openmp, pipes
from rdsnet.commands import COMMANDS

_USER_ERROR = 2
_INTERRUPTED = 130  # as a shell reports Ctrl-C


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands. Imports neither torch nor Detectron2."""
    parser = argparse.ArgumentParser(
        prog="rdsnet",
        description="RDSNet: reciprocal object detection and instance segmentation.",
        epilog="Example: rdsnet predict --help",
    )
    parser.add_argument("--version", action="version", version=f"rdsnet {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f"rdsnet.commands.{name.replace('-', '_')}")
        summary, _, details = module.__doc__.partition("\n")
        subparser = subparsers.add_parser(
            name,
            help=summary[0].lower() + summary[1:].rstrip("."),
            description=summary,
            epilog=details.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        subparser.add_argument(
            "--traceback", action="store_true", help="show where in the code an error arose"
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status.

    Args:
        argv: the words after ``rdsnet``; None: of this process.
    """
    try:
        try:
            status = _run(argv)
        finally:
            sys.stdout.flush()  # which Python would do later, with a message
    except BrokenPipeError:
        pipes.discard(sys.stdout)
        pipes.discard(sys.stderr)
        return pipes.STATUS
    return pipes.STATUS if pipes.is_discarded(sys.stdout) else status


def _run(argv: Sequence[str] | None) -> int:
    # Calls inside Detectron2 that users of rdsnet can do nothing about.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    args = build_parser().parse_args(argv)
    openmp.prepare()
    show_traceback = args.traceback or os.environ.get("RDSNET_TRACEBACK", "") not in ("", "0")
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        if show_traceback:
            raise
        print("\ninterrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        raise
    except (OSError, ValueError, ImportError) as error:
        if show_traceback or not _is_for_the_user(error):
            raise
        print(f"rdsnet {args.command}: {_message(error)}", file=sys.stderr)
        return _USER_ERROR


def _is_for_the_user(error: Exception) -> bool:
    """Whether an error tells what is missing; names that a module does not have are our mistake."""
    is_module = isinstance(error, ModuleNotFoundError)
    return is_module or not isinstance(error, ImportError) or _lacks_library(error)


def _lacks_library(error: ImportError) -> bool:
    """Whether the system could not load a library that a package is linked to."""
    return "cannot open shared object file" in str(error)


def _message(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package == "detectron2":
            return (
                "Detectron2 is not installed. Install it with 'python tools/install_detectron2.py' "
                "(in a checkout of rdsnet) or from its repository, facebookresearch/detectron2."
            )
        return f"{error}. 'rdsnet doctor' lists what is installed."
    if isinstance(error, ImportError):
        return f"{error}. 'rdsnet doctor' says which of the main packages cannot be loaded."
    return str(error) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
