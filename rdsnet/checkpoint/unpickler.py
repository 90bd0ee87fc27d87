"""Pickles read as data: numpy arrays and plain containers, nothing else.

A pickle is a program. It may name any function of any installed module and have it called; that is
how a "checkpoint" runs foreign code when it is loaded. This reader knows the few names that numbers
in containers need, and stops at any other before it is even imported.
"""

from __future__ import annotations

import collections
import pickle
from typing import BinaryIO

import numpy as np

try:
    from numpy._core import multiarray, numeric
except ImportError:  # numpy 1
    from numpy.core import multiarray, numeric


def _latin1(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes in the old protocols: ``_codecs.encode(text, "latin1")``."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding '{encoding}'")
    return text.encode("latin-1")


_ADMITTED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
for _name in ("set", "frozenset", "complex", "bytearray"):
    for _module in ("builtins", "__builtin__"):
        _ADMITTED[_module, _name] = getattr(__import__("builtins"), _name)
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = multiarray._reconstruct
    _ADMITTED[f"{_core}.multiarray", "scalar"] = multiarray.scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = numeric._frombuffer


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants to use {module}.{name}") from None

    def persistent_load(self, pid: object) -> object:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def load_plain_pickle(file: BinaryIO) -> object:
    """The content of a pickle, text of Python 2 read as latin-1.

    Raises:
        pickle.UnpicklingError: it holds more than numpy arrays, numbers, texts and containers of
            them; or it is damaged.
    """
    try:
        return _PlainUnpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error
