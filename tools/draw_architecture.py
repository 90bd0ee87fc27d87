#!/usr/bin/env python3
"""Draws the rooms of the package and the imports between them: docs/images/architecture.svg.

    python tools/draw_architecture.py           # draw it again
    python tools/draw_architecture.py --check   # is the picture that is there still right?

Floors are those of the contract "floors" in pyproject.toml, rooms the packages and modules directly
inside rdsnet, arrows what their files import (read as text: nothing is imported). An arrow that
follows from others is left out: who imports training reaches data through it.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from html import escape
from pathlib import Path

import grimp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
PACKAGE = "rdsnet"
# Pixels.
WIDTH, ROOM_LEFT, ROOM_WIDTH, ROOM_HEIGHT, MARGIN, GAP = 1200, 290, 130, 36, 20, 12
COLOURS = ("#fde7d3", "#fdf3c8", "#e3f3d0", "#d3efe8", "#d6e7f8", "#e3dcf6", "#f6dcec")


def floors() -> list[list[str]]:
    """Names of the rooms, floor by floor from the top."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (c for c in settings["tool"]["importlinter"]["contracts"] if c["id"] == "floors")
    layers = contract["layers"]
    names = [layer.replace("|", ":").split(":") for layer in layers]
    return [[name.strip(" ()") for name in floor] for floor in names]


def imports_between(rooms: list[str]) -> dict[str, set[str]]:
    """{room: rooms that its files import}."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            a, b = (name.split(".")[1] if "." in name else "" for name in (importer, imported))
            if a in found and b in found and a != b:
                found[a].add(b)
    return found


def without_implied(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """The arrows without those that a longer way leads to as well."""

    def reached(room: str) -> set[str]:
        return set().union(*({below} | reached(below) for below in arrows[room]))

    return {
        room: {b for b in below if not any(b in reached(other) for other in below - {b})}
        for room, below in arrows.items()
    }


def first_sentence(room: str) -> str:
    """What the room says of itself at the beginning of its docstring."""
    package = ROOT / PACKAGE / room / "__init__.py"
    path = package if package.is_file() else ROOT / PACKAGE / f"{room}.py"
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    text = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"\. (?=[A-Z])|\.$", re.sub(r":\w+:|``|`", "", text))[0]


def svg(rows: list[list[str]], arrows: dict[str, set[str]]) -> str:
    """The picture: the rooms from top to bottom, their arrows in arcs beside them."""
    places, y = {}, MARGIN
    for row in rows:
        for room in row:
            places[room] = y
            y += ROOM_HEIGHT
        y += GAP
    middle = ROOM_HEIGHT / 2 - 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" '
        'font-family="sans-serif" font-size="15">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{y}" fill="white"/>',
    ]
    tallest = y - 2 * MARGIN
    for room, below in arrows.items():
        for other in sorted(below):
            start, end = places[room] + middle + 6, places[other] + middle - 4
            reach = 30 + (ROOM_LEFT - 60) * abs(end - start) / tallest
            lines.append(
                f'<path d="M{ROOM_LEFT} {start:.0f}C{ROOM_LEFT - 1.3 * reach:.0f} {start:.0f} '
                f'{ROOM_LEFT - 1.3 * reach:.0f} {end:.0f} {ROOM_LEFT} {end:.0f}" fill="none" '
                'stroke="#667" marker-end="url(#tip)"/>'
            )
    for k, row in enumerate(rows):
        for room in row:
            top = places[room]
            lines.append(
                f'<rect x="{ROOM_LEFT}" y="{top}" width="{ROOM_WIDTH}" height="{ROOM_HEIGHT - 4}" '
                f'rx="6" fill="{COLOURS[k % len(COLOURS)]}" stroke="#556"/>'
                f'<text x="{ROOM_LEFT + ROOM_WIDTH / 2:.0f}" y="{top + 21}" '
                f'text-anchor="middle">{escape(room)}</text>'
                f'<text x="{ROOM_LEFT + ROOM_WIDTH + 14}" y="{top + 21}" font-size="13" '
                f'fill="#445">{escape(first_sentence(room))}</text>'
            )
    return "\n".join([*lines, "</svg>", ""])


def drawn() -> str:
    """The picture as it should be now."""
    rows = floors()
    arrows = imports_between([room for row in rows for room in row])
    return svg(rows, without_implied(arrows))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare, don't write")
    args = parser.parse_args(argv)
    if args.check:
        is_right = PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == drawn()
        print(f"{PICTURE.relative_to(ROOT)} is {'right' if is_right else 'out of date'}")
        return 0 if is_right else 1
    PICTURE.write_text(drawn(), encoding="utf-8")
    print(f"written: {PICTURE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
