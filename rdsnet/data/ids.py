"""What an id is: any integer and any text that json holds, whatever their length.

Some exporters write hashes of 64 bits and more, others UUIDs or file names, and some write the same
id once as a number and once as text. Ids stay as they are given; only a reference to one may be
written in another way (:class:`References`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

# Whole numbers as text. (Python refuses to read numbers of more than 4300 digits.)
_WHOLE = re.compile(r"\s*([+-]?[0-9]{1,4000})(?:\.0*)?\s*")
_DECIMAL = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?\s*")


def is_id(value: object) -> bool:
    """Whether a value can be an id: an integer or text (true and false are neither)."""
    return type(value) in (int, str)


def is_count(value: object) -> bool:
    """Whether a value is an integer of at least 1, as the sides of an image must be."""
    return type(value) is int and value >= 1


def id_order(id_: int | str) -> tuple[bool, int, bool, str]:
    """Sort key: whole numbers, also those in text, by their value; then other text."""
    if type(id_) is int:
        return False, id_, False, ""
    number = whole_number(id_)
    return number is None, number or 0, True, id_


def shown_id(id_: object, most: int = 60) -> str:
    """An id as messages show it: numbers bare, text in quotes; the middle of long ones is left
    out, since ids of one origin often begin alike.
    """
    text = repr(id_)
    return text if len(text) <= most else f"{text[: most // 2 - 2]}...{text[-most // 2 + 1 :]}"


def whole_number(value: object) -> int | None:
    """The integer that a value says beyond doubt: 3 of 3, 3.0, "3" and "3.0"; else None."""
    if type(value) is int:
        return value
    if type(value) is float:
        return int(value) if value.is_integer() else None
    if type(value) is str and (match := _WHOLE.fullmatch(value)):
        return int(match[1])
    return None


def plain_number(value: object) -> int | float | None:
    """A number, or the number that a text says beyond doubt: 2.5 of 2.5 and "2.5"; else None."""
    if type(value) in (int, float):
        return value
    if type(value) is str and _DECIMAL.fullmatch(value):
        whole = whole_number(value)
        return float(value) if whole is None else whole
    return None


class References:
    """Finds the id that a reference means, also when it is written in another way.

    1, 1.0 and "1" mean the same where only one of them is declared; a reference that is an id
    itself means that one. A float of 2^53 and more, which has lost digits, means the only id that
    it can have come from.

    Args:
        ids: what is declared.
    """

    def __init__(self, ids: Iterable[int | str]) -> None:
        self._ids = set(ids)
        self._by_meaning: Mapping[object, list[int | str]] | None = None

    def find(self, reference: object) -> int | str | None:
        """The id, or None when there is none or more than one."""
        if is_id(reference) and reference in self._ids:
            return reference
        meaning = _rounded(reference) if type(reference) is float else _meaning(reference)
        if meaning is None:
            return None
        if self._by_meaning is None:  # hardly any file needs it
            self._by_meaning = self._index()
        found = self._by_meaning.get(meaning, ())
        return found[0] if len(found) == 1 else None

    def _index(self) -> Mapping[object, list[int | str]]:
        index = defaultdict(list)
        for id_ in self._ids:
            for meaning in {_meaning(id_), _rounded(id_)} - {None}:
                index[meaning].append(id_)
        return index


def _meaning(value: object) -> tuple[str, int | str] | None:
    number = whole_number(value)
    if number is not None:
        return "number", number
    return ("text", value.strip()) if type(value) is str else None


def _rounded(value: object) -> tuple[str, float] | None:
    number = whole_number(value)
    try:
        return None if number is None else ("float", float(number))
    except OverflowError:
        return None
