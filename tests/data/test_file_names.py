"""Which file of a folder a name stands for, and when nobody can know."""

import json
import os
import unicodedata

import pytest

from rdsnet.cli import main
from rdsnet.data.checks import check_coco
from rdsnet.data.file_names import fitting_files


@pytest.fixture
def fits(tmp_path):
    """Call with the files of a folder "pics" and names; gives what fits each."""

    def call(files, *names, taken=()):
        for file in files:
            path = tmp_path / "pics" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        return fitting_files(names, taken, str(tmp_path / "pics"))

    return call


@pytest.mark.parametrize(
    ("name", "file", "differences"),
    [
        # Folders: more or fewer than there are, "pics" itself, doubled, upwards.
        ("pics/k1.png", "k1.png", "folders"),
        ("pics/pics/k1.png", "k1.png", "folders"),
        ("export/pics/sub/k1.png", "sub/k1.png", "folders"),
        ("k1.png", "sub/k1.png", "folders"),
        ("../k1.png", "k1.png", "folders"),
        # Windows.
        ("sub\\k1.png", "sub/k1.png", "backslashes"),
        ("pics\\k1.png", "k1.png", "backslashes, folders"),
        ("C:\\Users\\me\\upload\\k1.png", "k1.png", "backslashes, folders"),
        ("..\\..\\label-studio\\media\\upload\\12\\k1.png", "k1.png", "backslashes, folders"),
        ("sub/k1.png", "sub\\k1.png", "backslashes"),  # so unpacked from a zip of Windows
        # URL codes, in the name or in the file's.
        ("my%20k1.png", "my k1.png", "URL codes"),
        ("sub%2Fk1.png", "sub/k1.png", "URL codes"),
        ("my%2520k1.png", "my k1.png", "URL codes"),
        ("my k1.png", "my%20k1.png", "URL codes"),
        ("my+k1.png", "my k1.png", "'+' for a blank"),
        ("50%25.png", "50%.png", "URL codes"),
        # Addresses.
        ("file:///home/me/k1.png", "k1.png", "folders"),
        ("https://host:8080/data/upload/3/k1.png?token=a/b", "k1.png", "address, folders"),
        ("/data/upload/3/k1.png", "k1.png", "folders"),
        ("/data/local-files/?d=other/my%20k1.png", "my k1.png", "URL codes, address, folders"),
        ("s3://bucket/set/k1.png", "k1.png", "folders"),
        ("k1.png?size=1", "k1.png", "address"),
        ("upload/3/1a2b3c4d-k1.png", "k1.png", "Label Studio's prefix, folders"),
        # Case and Unicode forms.
        ("k1.PNG", "k1.png", "case"),
        ("SUB/K1.png", "Sub/k1.PNG", "case"),
        (unicodedata.normalize("NFD", "für.png"), "für.png", "Unicode form"),
        ("für.png", unicodedata.normalize("NFD", "für.png"), "Unicode form"),
        (unicodedata.normalize("NFD", "FÜR.PNG"), "für.png", "case"),
    ],
)
def test_the_one_file_that_fits_is_found(name, file, differences, fits):
    fit = fits([file, "other/z.png"], name)[name]
    assert fit.is_certain and fit.files == (file,)
    assert ", ".join(fit.differences) == differences
    assert str(fit) == f"'{file}' fits (the difference: {differences})"


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["k2.png"], "k1.png"),
        (["k1.jpg"], "k1.png"),  # another file, even if of the same picture
        (["val/001.png"], "train/001.png"),  # not the same picture
        ([".trash/k1.png"], "k1.png"),
        (["k1.png"], "1a2b3c4-k1.png"),
        (["k1.png"], ""),
        (["k1.png"], ".."),
        (["k1.png"], "https://[bad"),
    ],
)
def test_what_is_another_file_does_not_fit(files, name, fits):
    assert fits(files, name) == {}


def test_the_strictest_reading_counts(fits):
    files = ["a b.png", "a%20b.png", "A B.png"]
    assert fits(files, "pics/a%20b.png")["pics/a%20b.png"].files == ("a%20b.png",)
    assert fits(files, "A%20B.png")["A%20B.png"].files == ("A B.png",)


def test_the_file_that_agrees_in_most_folders_is_meant(fits):
    files = ["train/001.png", "val/001.png"]
    assert fits(files, "D:\\set\\val\\001.png")["D:\\set\\val\\001.png"].files == ("val/001.png",)


def test_of_several_equal_candidates_none_is_chosen(fits):
    fit = fits(["train/001.png", "val/001.png"], "001.png")["001.png"]
    assert not fit.is_certain and fit.files == ("train/001.png", "val/001.png")
    assert "2 files fit" in str(fit)
    assert not fits(["p.jpg", "P.jpg"], "p.JPG")["p.JPG"].is_certain


def test_a_file_stands_for_one_name_only(fits):
    found = fits(["001.png"], "train/001.png", "val/001.png")
    assert not any(fit.is_certain for fit in found.values())
    assert "'val/001.png' means the same file" in str(found["train/001.png"])
    # The folder is called "pics": that name is the better one.
    found = fits(["001.png"], "pics/001.png", "val/001.png")
    assert found["pics/001.png"].is_certain and not found["val/001.png"].is_certain
    found = fits(["001.png"], "val/001.png", taken=["./001.png"])
    assert not found["val/001.png"].is_certain


@pytest.mark.parametrize(
    "name", ["../outside/secret.png", "..%2Foutside%2Fsecret.png", "/etc/passwd", "up/secret.png"]
)
def test_no_name_leads_out_of_the_folder(name, fits, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(b"x")
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "up").symlink_to(tmp_path / "outside")
    assert fits(["a.png"], name) == {}


def test_a_link_to_nowhere_fits_no_name(fits, tmp_path):
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "k1.png").symlink_to("nowhere")
    assert fits(["z.png"], "pics/k1.png") == {}


def test_check_data_names_the_file_training_refuses_and_fix_writes_it(coco, tmp_path, capsys):
    originals = [image["file_name"] for image in coco.content["images"]]
    for image in coco.content["images"][:3]:
        image["file_name"] = f"task 4\\images\\{image['file_name'].upper()}"
    words = [coco.write(), coco.image_root]
    with pytest.raises(FileNotFoundError) as error:
        check_coco(*words)
    message = "does not exist; 'rle.png' fits (the difference: backslashes, case, folders)"
    assert message in str(error.value) and "--fix OUT.json" in str(error.value)
    fixed = str(tmp_path / "fixed.json")
    sheet = ["--sheet", str(tmp_path / "sheet.png")]
    assert main(["check-data", *words, "--fix", fixed, *sheet]) == 0
    printed = capsys.readouterr().out
    assert "image file name: 3" in printed and message in printed
    assert "3 file names corrected" in printed and "Training would work." in printed
    with open(fixed) as file:
        assert [image["file_name"] for image in json.load(file)["images"]] == originals
    assert len(check_coco(fixed, coco.image_root)["annotations"]) == 8


def test_images_whose_file_is_uncertain_are_named_and_left_out(coco, tmp_path, capsys):
    os.makedirs(coco.image_path("a"))
    os.link(coco.image_path("rle.png"), coco.image_path("a/two.png"))
    os.link(coco.image_path("rle.png"), coco.image_path("two.PNG"))
    coco.content["images"][1]["file_name"] = "Two.png"
    fixed = str(tmp_path / "fixed.json")
    sheet = ["--sheet", str(tmp_path / "sheet.png")]
    assert main(["check-data", coco.write(), coco.image_root, "--fix", fixed, *sheet]) == 0
    printed = capsys.readouterr().out
    assert "2 files fit, and none better than another: 'two.PNG', 'a/two.png'" in printed
    assert "1 missing images left out: Two.png" in printed
    with open(fixed) as file:
        assert len(json.load(file)["images"]) == 4
