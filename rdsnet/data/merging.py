"""Corrected annotations taken back into those that were trained on: label, train, correct, again.

An image is known again by its file: the same one, one of equal bytes, or, where its file is not at
hand, one of the same name. What is corrected takes the place of all that the image had; nothing
else changes. Where two answers are possible, there is none: an error says which.
"""

from __future__ import annotations

import difflib
import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from rdsnet.data.checks import (
    complete_annotations,
    free_id,
    structure_findings,
    usable_annotations,
)
from rdsnet.data.class_names import distinct_names
from rdsnet.data.equal_images import equal_images
from rdsnet.data.file_names import fitting_files
from rdsnet.data.findings import counted, first_of, printable, report
from rdsnet.data.formats.collecting import Export
from rdsnet.data.ids import shown_id
from rdsnet.data.normal_form import normal_form

# What predictions have and annotations have not.
_OF_PREDICTIONS = ("score", "bbox_regressed")
# How alike names are that may be one, misspelt; of difflib, 1: equal.
_ALIKE = 0.75


@dataclass
class Merged:
    """What :func:`merge_corrected` returns.

    Attributes:
        content: COCO's, ``file_name`` being relative to the image folder of the training data.
        before, after: objects by class.
        replaced, added: ``file_name`` of images.
        emptied: those of ``replaced`` that had objects and have none now.
        unchanged: how many images nobody has corrected.
        new_classes: and the classes of the training data whose names are much alike.
        remarks: what else people should know.
    """

    content: dict
    before: Counter[str]
    after: Counter[str]
    unchanged: int
    replaced: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    emptied: list[str] = field(default_factory=list)
    new_classes: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A summary for people."""
        numbers = [len(self.replaced), len(self.added), self.unchanged]
        kinds = ["replaced", "added", "unchanged"]
        lines = ["Images:   " + ", ".join(f"{n} {kind}" for n, kind in zip(numbers, kinds))]
        lines.append(f"Objects:  {self.before.total()} -> {self.after.total()}")
        width = max(map(len, self.after), default=0)
        for name in self.after:
            new = "  new" if name in self.new_classes else ""
            counts = f"{self.before[name]:>7} -> {self.after[name]}"
            lines.append(f"  {printable(name):<{width}} {counts}{new}")
        if self.emptied:
            number = counted(len(self.emptied), "image")
            lines.append(f"{number} had objects and has none now: {first_of(self.emptied)}")
        for name, alike in self.new_classes.items():
            for other in alike:
                lines.append(
                    f"The new class '{printable(name)}' is called almost like "
                    f"'{printable(other)}'. If it is the same: --rename '{name}={other}'"
                )
        return lines + self.remarks


def merge_corrected(
    train: Export, corrected: Sequence[Export], renamed: Mapping[str, str] | None = None
) -> Merged:
    """Put corrected annotations in the place of those that the same images had; add new images.

    Images and annotations that stay keep their ids; others get new ones above all that there are.
    Classes are matched by name; those that only corrections have get a new id.

    Args:
        train: the annotations that were trained on.
        corrected: of exports with parts only that for training is taken.
        renamed: {name of a class in the corrections: name to take it for}.

    Raises:
        FileNotFoundError: a new image has no file.
        ValueError: it is not certain which image or class is meant, or annotations cannot be used.
    """
    content = _part(train, None, "the json of the one to correct")
    known, root = _KnownImages(content, train.image_root, train.path), train.image_root
    classes = _Classes(content["categories"], train.path, renamed or {})
    before = _counts(content)
    merged = Merged({}, before, Counter(), len(content["images"]))
    pictures = [picture for export in corrected for picture in _pictures(export, root, merged)]
    classes.check_renamed(picture.names.values() for picture in pictures)
    taken = known.matched(pictures)
    replacing = {image["id"]: picture for image, picture in taken if image is not None}
    images, annotations = list(content["images"]), []
    for annotation in content["annotations"]:
        if annotation["image_id"] not in replacing:
            annotations.append(annotation)
    free_image, free_annotation = free_id(images), free_id(content["annotations"])
    had = Counter(annotation["image_id"] for annotation in content["annotations"])
    for image, picture in taken:
        if image is None:
            name = _new_name(picture.path, root)
            image = {**picture.image, "id": free_image, "file_name": name}
            free_image += 1
            images.append(image)
            merged.added.append(name)
        else:
            merged.replaced.append(image["file_name"])
            if had[image["id"]] and not picture.annotations:
                merged.emptied.append(image["file_name"])
        for annotation in picture.annotations:
            kept = {key: annotation[key] for key in annotation if key not in _OF_PREDICTIONS}
            kept["id"], kept["image_id"] = free_annotation, image["id"]
            kept["category_id"] = classes.id_of(picture, annotation["category_id"])
            free_annotation += 1
            annotations.append(kept)
    merged.unchanged -= len(merged.replaced)
    merged.new_classes = classes.new
    merged.remarks += known.remarks
    merged.content = {
        **content,
        "images": images,
        "annotations": annotations,
        "categories": classes.categories,
    }
    merged.after = _counts(merged.content)
    return merged


@dataclass
class _Picture:
    """A corrected image: where it comes from, its file, its objects and the names of classes."""

    export: Export
    image: dict
    path: str
    annotations: list[dict]
    names: Mapping[Hashable, str]

    def __str__(self) -> str:
        return f"'{printable(self.image['file_name'])}' of {printable(self.export.path)}"


def _pictures(export: Export, root: str, merged: Merged) -> list[_Picture]:
    """The images of an export, each with its file, which may lie in ``root``."""
    content = _part(export, merged, "")
    usable, findings = usable_annotations(content)
    if findings:
        raise ValueError(
            f"{report(findings, export.path)}\nCorrect these, or leave them out: 'rdsnet "
            f"check-data {printable(export.path)} --fix OUT.json' writes a copy to merge instead."
        )
    annotations = defaultdict(list)
    for annotation in complete_annotations(usable, content["images"]):
        annotations[annotation["image_id"]].append(annotation)
    classes = {category["id"]: category["name"] for category in content["categories"]}
    names = dict(zip(classes, distinct_names(classes)))
    paths = _paths(content["images"], export.image_root, root)
    return [
        _Picture(export, image, paths[image["file_name"]], annotations[image["id"]], names)
        for image in content["images"]
    ]


def _part(export: Export, merged: Merged | None, wanted: str) -> dict:
    """The content in normal form; what is for validation stays apart."""
    if len(export.parts) > 1 and merged is None:
        parts = ", ".join(export.parts)
        raise ValueError(f"{printable(export.path)} has the parts {parts}. Give {wanted}.")
    if len(export.parts) > 1:
        others = " and ".join(name for name in export.parts if name != "train")
        merged.remarks.append(
            f"{printable(export.path)}: only its part for training is merged, not {others}; "
            "'rdsnet convert-data' writes every part as a file of its own."
        )
    content, _ = normal_form(export.part("train"))
    findings = structure_findings(content)
    if findings:
        raise ValueError(report(findings, export.path))
    return content


def _paths(images: Sequence[dict], own_root: str, root: str) -> dict[str, str]:
    """{``file_name``: path}, in the folder of the training data where the own one has no file."""
    names = [image["file_name"] for image in images]
    paths = {name: os.path.join(own_root, name) for name in names}
    missing = [name for name in names if not os.path.isfile(paths[name])]
    for name, fit in fitting_files(dict.fromkeys(missing), (), root).items():
        if not fit.is_certain:
            raise ValueError(f"the image '{printable(name)}': {fit}. Give it its whole path.")
        paths[name] = os.path.join(root, fit.files[0])
    return paths


class _KnownImages:
    """Images of the training data, to be found again."""

    def __init__(self, content: dict, root: str, shown: str) -> None:
        self.shown, self.root, self.remarks = shown, root, []
        self._by_file: dict[str, list[dict]] = defaultdict(list)
        self._by_name: dict[str, list[dict]] = defaultdict(list)
        for image in content["images"]:
            self._by_file[_real(os.path.join(root, image["file_name"]))].append(image)
            self._by_name[_parts(image["file_name"])[-1]].append(image)

    def matched(self, pictures: Sequence[_Picture]) -> list[tuple[dict | None, _Picture]]:
        """Every corrected image with that of the training data, or None: it is new.

        Raises:
            FileNotFoundError, ValueError: as :func:`merge_corrected`.
        """
        equal = self._equal([p.path for p in pictures if _real(p.path) not in self._by_file])
        matched, first = [], {}
        for picture in pictures:
            file = _real(picture.path)
            image = self._find(picture, equal.get(file, []))
            key = ("known", image["id"]) if image else ("new", file)
            if key in first:
                raise ValueError(
                    f"{first[key]} and {picture} are one image, which can only be corrected once. "
                    "Leave one of them out."
                )
            first[key] = picture
            if image is None and not os.path.isfile(picture.path):
                raise FileNotFoundError(
                    f"{picture} is not among the images of {printable(self.shown)}, and there is "
                    f"no file {printable(picture.path)}. Give the folder of all images: "
                    "--images DIR"
                )
            if image is not None:
                self._check_size(image, picture)
            matched.append((image, picture))
        return matched

    def _equal(self, paths: Sequence[str]) -> dict[str, list[dict]]:
        """{file: images of the training data whose files have the same bytes}."""
        files = [_real(path) for path in paths]
        if not files:
            return {}
        groups = equal_images({file: file for file in [*self._by_file, *files]})
        wanted, found = set(files), {}
        for group in groups:
            images = [image for file in group for image in self._by_file.get(file, [])]
            found |= {file: images for file in group if file in wanted}
        return found

    def _find(self, picture: _Picture, equal: list[dict]) -> dict | None:
        name = _parts(picture.image["file_name"])
        alike = self._by_name.get(name[-1], [])
        found = self._by_file.get(_real(picture.path)) or equal
        if len(found) > 1:
            found = [image for image in found if image in alike] or found
        at_hand = os.path.isfile(picture.path)
        if not found:  # the name alone has to tell, where one of the files is not at hand
            for image in alike:
                if not (at_hand and os.path.isfile(os.path.join(self.root, image["file_name"]))):
                    found += [image] if _is_end(name, _parts(image["file_name"])) else []
        if not found and alike and at_hand:
            self.remarks.append(
                f"{picture} has other bytes than '{printable(alike[0]['file_name'])}' and was "
                "added. If it is the same photograph, --images DIR says where the one that counts "
                "is."
            )
        if len(found) > 1:
            ids = first_of(
                f"'{image['file_name']}' (id {shown_id(image['id'])})" for image in found
            )
            raise ValueError(
                f"{picture} may be several images of {printable(self.shown)}: {ids}. Name the "
                "folder that it lies in, too, or leave all but one of them out."
            )
        return found[0] if found else None

    def _check_size(self, image: dict, picture: _Picture) -> None:
        ours, theirs = ([i["width"], i["height"]] for i in (image, picture.image))
        if ours != theirs:
            raise ValueError(
                f"{picture} has {theirs[0]} x {theirs[1]} px, and in {printable(self.shown)} "
                f"{ours[0]} x {ours[1]}: its objects would lie elsewhere. 'rdsnet check-data' says "
                "which of the two is the file's size, and --fix OUT.json --scale-coordinates "
                "scales what was drawn on a resized copy."
            )


class _Classes:
    """Classes of the training data, and new ones, by name."""

    def __init__(self, categories: Sequence[dict], shown: str, renamed: Mapping[str, str]) -> None:
        self.categories, self.new, self._shown = list(categories), {}, shown
        self._renamed = renamed
        self._ids: dict[str, list[Hashable]] = defaultdict(list)
        names = {category["id"]: category["name"] for category in categories}
        for (id_, name), distinct in zip(names.items(), distinct_names(names)):
            for text in dict.fromkeys((name, distinct)):
                self._ids[text].append(id_)

    def check_renamed(self, given) -> None:
        """Raise if a class that is to be renamed is none of those that the corrections have."""
        there = {name for names in given for name in names}
        for name in self._renamed:
            if name not in there:
                raise ValueError(
                    f"--rename: no corrected file has the class '{name}'. They have: "
                    f"{first_of(sorted(there), 20)}"
                )

    def id_of(self, picture: _Picture, id_: Hashable) -> Hashable:
        """The id of a class, which may be new.

        Raises:
            ValueError: several classes have the name.
        """
        name = picture.names[id_]
        name = self._renamed.get(name, name)
        if name not in self._ids:
            names = [category["name"] for category in self.categories]
            self.new[name] = _alike(name, names)
            self._ids[name] = [free_id(self.categories)]
            self.categories.append({"id": self._ids[name][0], "name": name})
        ids = self._ids[name]
        if len(ids) > 1:
            raise ValueError(
                f"{picture} has the class '{printable(name)}', and {printable(self._shown)} has "
                f"{len(ids)} of this name. Say which one: --rename '{name}={name} (id {ids[0]!r})'"
            )
        return ids[0]


def _alike(name: str, names: Sequence[str]) -> list[str]:
    """Names that this one may be, but for its spelling."""
    simple = {"".join(other.casefold().split()): other for other in names}
    word = "".join(name.casefold().split())
    return [simple[key] for key in difflib.get_close_matches(word, simple, 1, _ALIKE)]


def _counts(content: dict) -> Counter[str]:
    """Objects by class, also of classes without any, in the order of the file."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    names = dict(zip(names, distinct_names(names)))
    counts = Counter(dict.fromkeys(names.values(), 0))
    counts.update(names[a["category_id"]] for a in content["annotations"] if _has_class(a, names))
    return counts


def _has_class(annotation: dict, names: Mapping[Hashable, str]) -> bool:
    id_ = annotation.get("category_id")
    return isinstance(id_, Hashable) and id_ in names


def _new_name(path: str, root: str) -> str:
    try:
        return os.path.relpath(path, root).replace(os.sep, "/")
    except ValueError:  # on another drive
        return os.path.abspath(path)


def _real(path: str) -> str:
    return os.path.realpath(path)


def _parts(name: str) -> tuple[str, ...]:
    return tuple(posixpath.normpath(name.replace("\\", "/")).split("/"))


def _is_end(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether the shorter path is the end of the longer one."""
    shared = min(len(one), len(other))
    return one[-shared:] == other[-shared:]
