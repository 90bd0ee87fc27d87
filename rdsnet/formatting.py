"""Numbers as people read them."""

from __future__ import annotations

import math


def decimal(
    value: float | None, places: int = 1, *, signed: bool = False, missing: str = "–"
) -> str:
    """A number with a fixed number of decimals.

    What rounds to zero is zero, without a sign.

    Args:
        signed: with a plus before positive numbers, for differences.
        missing: what stands for None and NaN.
    """
    if value is None or math.isnan(value):
        return missing
    text = f"{value:{'+' if signed else ''}.{places}f}"
    return text.lstrip("+-") if float(text) == 0 else text
