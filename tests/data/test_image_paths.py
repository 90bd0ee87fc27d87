"""Images that are no files that can be read: found before training, left out by --fix."""

import json
import os
import socket
from pathlib import Path

import pytest

from rdsnet.cli import main
from rdsnet.data import image_paths
from rdsnet.data.checks import check_coco
from rdsnet.data.equal_images import equal_images
from rdsnet.data.image_paths import file_problem
from rdsnet.reports.data_check import check_data

NAME = "rle.png"  # of image 3 of the fixture, which has two annotations


def broken_link(path):
    path.symlink_to("../store/4f/key.png")


def link_to_itself(path):
    path.symlink_to(path.name)


def ring_of_links(path):
    path.with_suffix(".a").symlink_to(path.name)
    path.symlink_to(path.with_suffix(".a").name)


def folder(path):
    path.mkdir()


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/null")


def nothing(path):
    path.write_bytes(b"")


def none(path):
    """There is nothing at all."""


FAULTS = [
    (broken_link, "is a link to '../store/4f/key.png', which does not exist"),
    (link_to_itself, "is a link that leads back to itself"),
    (ring_of_links, "is a link that leads back to itself"),
    (folder, "is a folder, not a file"),
    (pipe, "is a named pipe, not a file"),
    (device, "is a device, not a file"),
    (nothing, "is empty (0 bytes)"),
    (none, "does not exist"),
]


@pytest.mark.parametrize(("make", "reason"), FAULTS)
def test_what_is_no_readable_file_is_reported_refused_and_left_out(
    make, reason, coco, tmp_path, monkeypatch, capsys
):
    """Also that nothing waits for a writer of the pipe."""
    monkeypatch.chdir(tmp_path)
    path = Path(coco.image_path(NAME))
    path.unlink()
    make(path)
    words = ["check-data", coco.write(), coco.image_root]
    assert main(words) == 1
    printed = capsys.readouterr().out
    assert "1 problem: training would fail" in printed
    assert f"image 3: {path} {reason}" in printed

    with pytest.raises(FileNotFoundError) as error:
        check_coco(coco.json_file, coco.image_root)
    assert f"{path} {reason}" in str(error.value)
    assert main(["train", "--data", *words[1:], "--output", "out"]) == 2
    assert f"{path} {reason}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    assert main([*words, "--fix", "fixed.json"]) == 0
    assert f"1 missing images left out: {NAME}" in capsys.readouterr().out
    fixed = check_coco("fixed.json", coco.image_root)
    assert sorted(image["id"] for image in fixed["images"]) == [4, 5, 7, 9]
    assert not {13, 14} & {annotation["id"] for annotation in fixed["annotations"]}


def test_links_to_files_are_files(coco, tmp_path):
    path = Path(coco.image_path(NAME))
    path.rename(tmp_path / "elsewhere.png")
    path.symlink_to(tmp_path / "elsewhere.png")
    assert check_data(coco.write(), coco.image_root).problems == []


def test_a_socket_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path may have 107 bytes
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("s.png")
        assert file_problem("s.png") == "is a socket, not a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_files_without_permission_cannot_be_opened(coco):
    os.chmod(coco.image_path(NAME), 0)
    assert "Permission denied" in file_problem(coco.image_path(NAME))


def test_a_file_that_may_not_be_read_is_tried(coco, monkeypatch):
    """What ``access`` forbids is opened: only that tells whether a file server allows it."""

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "access", lambda path, mode: not path.endswith(NAME))
    assert file_problem(coco.image_path(NAME)) is None
    monkeypatch.setattr(image_paths, "open", refuse, raising=False)
    with pytest.raises(FileNotFoundError, match="image 3: .*rle.png cannot be opened: Permission"):
        check_coco(coco.write(), coco.image_root)


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 300, "mixed.png/a.png", "\ud800.png", ".", ""])
def test_names_that_no_file_can_have_are_problems(name, coco):
    assert file_problem(os.path.join(coco.image_root, name)) is not None
    assert equal_images({1: os.path.join(coco.image_root, name)}) == []


def test_messages_can_be_printed_whatever_the_name_is(coco):
    coco.content["images"][0]["file_name"] = "two\nlines\udcff.png"
    findings = check_data(coco.write(), coco.image_root).problems
    assert [f.message.encode("utf-8").count(b"\n") for f in findings] == [0]
    assert r"two\nlines\xff.png does not exist" in findings[0].message


@pytest.mark.parametrize(
    ("make", "reason"), [(broken_link, "is a link to"), (nothing, "is a file, not a folder")]
)
def test_an_image_folder_that_is_none_is_one_problem(make, reason, coco, tmp_path):
    path = tmp_path / "not_a_folder"
    make(path)
    (finding,) = check_data(coco.write(), path).problems
    assert finding.where == "all 5 images" and reason in finding.message


def test_of_two_names_for_an_image_the_repair_reads_the_one_that_exists(coco, tmp_path):
    """A file is found under another name and cannot be read: the verdict must be true."""
    Path(coco.image_path(NAME)).write_bytes(b"no picture")
    coco.content["images"][1]["file_name"] = f"photos\\{NAME}"
    assert main(["check-data", coco.write(), coco.image_root, "--fix", f"{tmp_path}/f.json"]) == 0
    images = json.loads((tmp_path / "f.json").read_text())["images"]
    assert sorted(image["id"] for image in images) == [4, 5, 7, 9]
