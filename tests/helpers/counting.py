"""How much work a function is, counted instead of timed, so that it is the same on any machine."""

from __future__ import annotations

import sys
from collections.abc import Callable


def calls(function: Callable[[], object]) -> int:
    """How many functions, of Python and of C, are called."""
    count = 0

    def counting(frame, event, arg) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counting)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def assert_work_is_linear(function: Callable[[int], object], size: int) -> None:
    """The work grows as the size does rather than as its square.

    From ``size`` to twice as much it grows by some amount; from there to four times as much by
    twice that where it is linear, by four times that where it is quadratic.
    """
    function(size)  # what is done once in a process
    once, twice, four = (calls(lambda n=n: function(n * size)) for n in (1, 2, 4))
    assert once < twice
    assert four - twice < 3 * (twice - once), f"{once}, {twice} and {four} calls"
