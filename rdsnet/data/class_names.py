"""Names of classes that can be told apart: two categories of a json may have one name.

Merged exports have such categories. They stay two classes, whose names get their category ids
wherever people read them: "thing (id 1)" and "thing (id 4)".
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

from detectron2.data import Metadata

from rdsnet.data.findings import Finding
from rdsnet.data.ids import shown_id


def distinct_names(classes: Mapping[Hashable, str]) -> list[str]:
    """The names of {category id: name}, in its order; those that several have, with their ids."""
    names = list(classes.values())
    counts = Counter(names)
    if len(counts) == len(names):
        return names
    marked = {id_: name + _mark(id_) if counts[name] > 1 else name for id_, name in classes.items()}
    return distinct_names(marked)  # another class may have been called "thing (id 1)" all along


def metadata_names(metadata: Metadata) -> list[str]:
    """As :func:`distinct_names`, of a registered data set, whoever has registered it."""
    names = list(metadata.thing_classes)
    numbers = metadata.get("thing_dataset_id_to_contiguous_id")
    ids = range(len(names)) if numbers is None else sorted(numbers, key=numbers.get)
    return distinct_names(dict(zip(ids, names, strict=True)))


def class_numbers(names: Sequence[str] | None, category_ids: Sequence) -> dict[str, set[int]]:
    """What a person may call the classes of a model, and which class numbers are meant.

    Args:
        names: distinct names of the classes, None: unknown.
        category_ids: of the classes.

    Returns:
        Keys are category ids as texts; names without the ids that :func:`distinct_names` has added,
        which mean all classes of that name; and the names themselves, which come first where one
        text is several of these.
    """
    by_id = {str(id_): {k} for k, id_ in enumerate(category_ids)}
    by_plain_name = defaultdict(set)
    for k, (name, id_) in enumerate(zip(names or (), category_ids)):
        by_plain_name[name.removesuffix(_mark(id_))].add(k)
    return {**by_id, **by_plain_name, **{name: {k} for k, name in enumerate(names or ())}}


def class_name_findings(categories: Iterable[dict]) -> Iterator[Finding]:
    """Categories of one name, and of names that differ in case, blanks or Unicode form alone.

    Args:
        categories: with ``id`` and ``name``.
    """
    alike = defaultdict(list)
    for category in categories:
        alike[_simplified(category["name"])].append(category)
    for group in alike.values():
        if len(group) > 1:
            where = "categories " + ", ".join(shown_id(category["id"]) for category in group)
            names = dict.fromkeys(category["name"] for category in group)
            if len(names) == 1:
                yield Finding("same class name", where, f"all are called {next(iter(names))!r}")
            else:
                yield Finding("similar class names", where, ", ".join(map(repr, names)))


def _mark(id_: Hashable) -> str:
    return f" (id {id_!r})"


def _simplified(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())
