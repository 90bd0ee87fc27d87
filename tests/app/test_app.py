"""The local page: what it takes and refuses, and the whole of it in a real browser."""

import json
import shutil

import numpy as np
import pytest
from helpers.hanging import HANG
from helpers.uploads import answering
from PIL import Image
from pycocotools.coco import COCO

pytest.importorskip("gradio")
from rdsnet.app.page import CONTROLS, Finder, _build_page, chosen  # noqa: E402
from rdsnet.cli import main  # noqa: E402
from rdsnet.prediction.thresholds import ScoreThresholds  # noqa: E402

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def finder(model_files, weights):
    return Finder(model_files["config"], weights, max_megapixels=1)


def test_an_image_is_found_drawn_and_exported(finder, photo, tmp_path):
    found = finder.find(photo)
    assert found.name == "street.png" and found.image.shape == (90, 140, 3)
    scores = [result["score"] for result in found.results]
    assert len(scores) == 7 and scores == sorted(scores, reverse=True)
    middle = scores[3]
    assert len(finder.table(found, middle)) == 4 == len(chosen(found, middle))
    pictures = [finder.draw(found, middle, shown) for shown in ([], ["masks"], ["boxes"], CONTROLS)]
    for one, other in zip(pictures, pictures[1:]):
        assert one.shape == other.shape and (one != other).any()
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(finder.coco(found, middle)))
    coco = COCO(str(path))
    assert [c["name"] for c in coco.dataset["categories"]] == ["disc", "bar"]
    assert {a["category_id"] for a in coco.dataset["annotations"]} <= {4, 9}
    for annotation, result in zip(coco.dataset["annotations"], found.results):
        assert annotation["bbox"] == result["bbox"] and annotation["score"] >= middle
        assert coco.annToMask(annotation).sum() == annotation["area"]


def test_what_was_best_in_validation_is_where_the_page_begins(model_files, weights, finder, photo):
    """One number for both classes is where the slider stands; two are shown instead of it."""
    found = finder.find(photo)
    highest = max(result["score"] for result in found.results if result["category_id"] == 0)
    lowest = min(result["score"] for result in found.results)
    for thresholds, value, by_class in (
        ([], 0.5, False),
        ([0.123, 0.123], 0.123, False),
        ([0.02, 0.9], 0.5, True),
    ):
        opts = ["MODEL.RDSNET.SCORE_THRESHOLDS", repr(thresholds)]
        other = Finder(model_files["config"], weights, max_megapixels=1, opts=opts)
        page = _build_page(other, photo.parent, 1.0)
        slider, checkbox = (
            next(block for block in page.blocks.values() if block.elem_id == name)
            for name in ("score", "by-class")
        )
        assert slider.value == value and slider.minimum == min([0.05, *thresholds])
        assert checkbox.value is by_class is checkbox.visible
        assert slider.info is None or "Best in validation: 0." in slider.info
        assert bool(slider.info) is bool(thresholds)
    of_class = ScoreThresholds((highest, lowest))
    shown = chosen(found, of_class)
    assert [r["category_id"] for r in shown].count(0) == 1
    assert sum(r["category_id"] == 1 for r in found.results) == len(shown) - 1
    assert len(finder.table(found, of_class)) == len(shown)


def test_the_page_says_when_there_were_more_objects(model_files, weights, finder, photo):
    assert finder.find(photo).is_cut_off
    larger = Finder(model_files["config"], weights, max_megapixels=1, max_detections=3000)
    found = larger.find(photo)
    assert 7 < len(found.results) < 3000 and not found.is_cut_off


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "'x.png' is not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image that can be read"),
        (b"_BASE_: /etc/passwd", "is not an image that can be read"),
    ],
)
def test_what_is_no_image_is_refused_by_name(finder, tmp_path, content, message):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        finder.find(path)
    assert str(tmp_path) not in str(refusal.value)


def test_damaged_and_huge_images_are_refused(finder, photo, tmp_path):
    (tmp_path / "half.png").write_bytes(photo.read_bytes()[:9000])
    with pytest.raises(ValueError, match="'half.png' cannot be read: it is damaged"):
        finder.find(tmp_path / "half.png")
    Image.new("L", (1001, 1000)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match="1.0 megapixels; at most 1 are taken"):
        finder.find(tmp_path / "huge.png")


def test_a_stack_is_its_first_page_and_says_so(finder, tmp_path):
    first, *others = (Image.new("L", (60, 40), 30 * k) for k in range(4))
    first.save(tmp_path / "stack.tif", save_all=True, append_images=others)
    found = finder.find(tmp_path / "stack.tif")
    assert found.pages == 4 and found.image.max() == 0


def test_the_reason_why_a_whole_file_is_refused_is_given_without_its_folder(finder, tmp_path):
    Image.fromarray(np.zeros((20, 30), np.float32)).save(tmp_path / "heights.tif")
    with pytest.raises(ValueError, match="'heights.tif' has floating-point pixels") as refusal:
        finder.find(tmp_path / "heights.tif")
    assert str(tmp_path) not in str(refusal.value)


def test_mistakes_on_the_command_line(tmp_path, weights, capsys):
    assert main(["app", "--weights", weights]) == 2
    assert "no config.yaml beside" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["app", "--weights", weights, "--max-upload-mb", "none"])
    assert "not a positive number" in capsys.readouterr().err


@pytest.fixture(scope="module")
def page(model_files, weights):
    """The address of the page, served by the command line until the tests are over."""
    arguments = ["--weights", weights, "--config-file", model_files["config"]]
    arguments += ["--max-upload-mb", "0.5", "--max-megapixels", "1"]
    with answering("app", *arguments) as (address, _):
        yield address


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_the_page_in_a_browser(page, photo, tmp_path):
    """Upload, threshold, download; refusals; and not one request to another machine."""
    sync_api = pytest.importorskip("playwright.sync_api")
    text_file = tmp_path / "letter.png"
    text_file.write_text("Dear Sir or Madam")
    noise = np.random.default_rng(1).integers(0, 255, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    addresses = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.set_default_timeout(1000 * HANG)
        tab.on("request", lambda request: addresses.append(request.url))
        tab.goto(page)
        upload = "#image input[type=file]"
        tab.set_input_files(upload, str(photo))
        tab.wait_for_selector("#picture img")

        tab.fill("#score input[type=number]", "0.05")
        tab.keyboard.press("Enter")
        tab.wait_for_function("document.querySelector('#summary').innerText.startsWith('7 of 7')")
        for _ in range(100):  # the page may still offer the file of the score before
            with tab.expect_download() as download:
                tab.click("#download")
            download.value.save_as(tmp_path / "street.json")
            assert download.value.suggested_filename == "street.json"
            objects = len(json.loads((tmp_path / "street.json").read_text())["annotations"])
            if objects == 7:
                break
        assert objects == 7
        tab.screenshot(path=str(tmp_path / "page.png"), full_page=True)

        tab.fill("#score input[type=number]", "1")
        tab.keyboard.press("Enter")
        tab.wait_for_function("document.querySelector('#summary').innerText.startsWith('0 of 7')")

        for file, refusal in (
            (text_file, "'letter.png' is not an image that can be read"),
            (tmp_path / "large.png", "size"),
        ):
            tab.reload()
            tab.set_input_files(upload, str(file))
            toast = tab.wait_for_selector(".toast-body")
            assert refusal in toast.inner_text()
        browser.close()
    others = [a for a in addresses if not a.startswith((page, "data:", "blob:"))]
    assert addresses and others == []
