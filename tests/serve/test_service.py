"""The service in one process: what it answers, also to many at once, and when it is full."""

import asyncio
import io
import json
import threading

import numpy as np
import pytest
import torch
from helpers.hanging import HANG
from PIL import Image

for package in ("fastapi", "prometheus_client", "python_multipart", "swagger_ui_bundle", "httpx"):
    pytest.importorskip(package, reason="needs rdsnet[serve]")
from serve.clients import all_answers, as_form, ask, posted  # noqa: E402

from rdsnet.cli import main  # noqa: E402
from rdsnet.prediction.uploads import UploadPredictor  # noqa: E402
from rdsnet.serve.answers import accepted  # noqa: E402
from rdsnet.serve.batches import Batches  # noqa: E402
from rdsnet.serve.service import Service  # noqa: E402

FLOAT32 = ["MODEL.RDSNET.INFERENCE.PRECISION", "float32"]


@pytest.fixture(scope="module")
def predictor(model_files, weights):
    return UploadPredictor(model_files["config"], weights, max_megapixels=1, opts=FLOAT32)


@pytest.fixture
def service(predictor):
    service = Service(predictor, max_waiting=64)
    yield service
    service.close()


def png(seed, size=(60, 90)):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def without_ids(annotation):
    wanted = ("category_id", "bbox", "bbox_regressed", "score", "segmentation")
    return {key: annotation[key] for key in wanted}


def test_many_at_once_get_what_the_command_finds(service, model_files, weights, tmp_path):
    """Images of two sizes, as forms and as they are; each gets its own objects."""
    images = {f"{k:02d}.png": png(k, (60, 90 + 30 * (k % 2))) for k in range(24)}
    (tmp_path / "images").mkdir()
    for name, content in images.items():
        (tmp_path / "images" / name).write_bytes(content)
    words = ["predict", "--config-file", model_files["config"], "--weights", weights]
    words += [
        "--input",
        str(tmp_path / "images"),
        "--output",
        str(tmp_path),
        "--format",
        "coco,png",
    ]
    assert main([*words, "--precision", "float32", "--score-threshold", "0.3"]) == 0
    results = json.loads((tmp_path / "coco_instances_results.json").read_text())
    url = "/predict?score_threshold=0.3"
    requests = [as_form(content, name, url) for name, content in images.items()]
    requests += [posted(images["00.png"], url), posted(images["01.png"], url + "&format=png")]
    *answers, raw, drawn = asyncio.run(all_answers(service, requests))
    for k, (name, answer) in enumerate(zip(images, answers, strict=True)):
        document = answer.json()
        assert answer.status_code == 200 and document["images"][0]["file_name"] == name
        expected = [without_ids(r) for r in results if r["image_id"] == k]
        assert [without_ids(a) for a in document["annotations"]] == expected and expected
        assert answer.headers["X-RDSNet-Objects"] == str(len(expected))
    assert raw.json()["annotations"] == answers[0].json()["annotations"]
    assert raw.json()["images"][0]["file_name"] == "image"
    assert drawn.headers["content-type"] == "image/png"
    assert drawn.content == (tmp_path / "overlays" / "01.png").read_bytes()


def test_a_stack_is_its_first_page_and_says_so(service):
    first, *others = (Image.new("L", (60, 40), 30 * k) for k in range(4))
    buffer = io.BytesIO()
    first.save(buffer, "TIFF", save_all=True, append_images=others)
    for request in (posted(buffer.getvalue()), as_form(buffer.getvalue(), "stack.tif")):
        answer = ask(service, **request)
        assert answer.status_code == 200 and answer.headers["X-RDSNet-Pages"] == "4"
        assert answer.json()["info"]["pages"] == 4


def test_what_is_asked_for_is_kept(service, photo):
    content = photo.read_bytes()
    everything = ask(service, **posted(content, "/predict?score_threshold=0.05")).json()
    assert {c["id"]: c["name"] for c in everything["categories"]} == {4: "disc", 9: "bar"}
    assert everything["info"] == {"pages": 1, "is_cut_off": True}
    of_disc = [a for a in everything["annotations"] if a["category_id"] == 4]
    for wish in ("disc", "4"):
        answer = ask(service, **posted(content, f"/predict?score_threshold=0.05&classes={wish}"))
        assert [without_ids(a) for a in answer.json()["annotations"]] == list(
            map(without_ids, of_disc)
        )
    middle = everything["annotations"][3]["score"]
    some = ask(service, **posted(content, f"/predict?score_threshold={middle}")).json()
    assert len(some["annotations"]) == 4
    usual = ask(service, **posted(content)).json()["annotations"]
    assert usual == [a for a in everything["annotations"] if a["score"] >= 0.5]


@pytest.mark.parametrize(
    ("header", "format"),
    [
        ("*/*", "coco"),
        ("", "coco"),
        ("image/png", "png"),
        ("image/*;q=0.5, text/html", "png"),
        ("application/json;q=0.1, image/png;q=0.9", "png"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "coco"),
        ("image/png;q=0, application/json", "coco"),
        ("text/csv", None),
        ("image/png;q=much", None),
    ],
)
def test_the_header_accept_chooses_the_format(header, format):
    assert accepted(header) == format


@pytest.mark.parametrize(
    ("url", "headers", "status", "message"),
    [
        ("/predict?score_threshold=2", {}, 422, "score_threshold: Input should be less"),
        ("/predict?score_threshold=nan", {}, 422, "score_threshold: "),
        ("/predict?score_threshold=0.01", {}, 422, "start this with a lower --lowest-score"),
        ("/predict?classes=cat", {}, 422, "classes: the model has no 'cat'. It has: disc, bar"),
        ("/predict?format=xml", {}, 422, "not 'xml'"),
        ("/predict", {"Accept": "text/csv"}, 406, "Accept takes none of application/json"),
    ],
)
def test_a_wish_that_cannot_be_met_is_answered_in_words(
    service, photo, url, headers, status, message
):
    answer = ask(service, **posted(photo.read_bytes(), url, headers=headers))
    assert answer.status_code == status and message in answer.json()["detail"]


class Held:
    """A model that waits until it is let go."""

    def __init__(self, predictor):
        self.find_, self.is_asked, self.may_go = (
            predictor.find,
            threading.Event(),
            threading.Event(),
        )

    def __call__(self, prepared):
        self.is_asked.set()
        assert self.may_go.wait(HANG)
        return self.find_(prepared)


def test_whoever_comes_too_late_is_told_when_to_come_again(predictor, photo, monkeypatch):
    """Of 12 at once, 5 are let in; the others get their answer while the model is still busy."""
    held = Held(predictor.predictor)
    monkeypatch.setattr(predictor.predictor, "find", held)
    service = Service(predictor, max_waiting=5)

    async def visit():
        waiting = asyncio.ensure_future(all_answers(service, [posted(photo.read_bytes())] * 5))
        await asyncio.to_thread(held.is_asked.wait, HANG)
        while service.inside < 5:
            await asyncio.sleep(0)
        late = await all_answers(service, [posted(photo.read_bytes())] * 7)
        held.may_go.set()
        return await waiting, late

    early, late = asyncio.run(visit())
    assert [answer.status_code for answer in early] == [200] * 5
    assert [answer.status_code for answer in late] == [503] * 7
    for answer in late:
        assert int(answer.headers["Retry-After"]) >= 1
        assert "5 images wait already: try again in" in answer.json()["detail"]
    assert service.inside == 0
    assert ask(service, **posted(photo.read_bytes())).status_code == 200
    service.close()


def test_pixels_in_memory_do_not_grow_with_those_who_wait(predictor, photo, monkeypatch):
    held = Held(predictor.predictor)
    monkeypatch.setattr(predictor.predictor, "find", held)
    read = []
    original = predictor.read
    monkeypatch.setattr(predictor, "read", lambda *a, **k: read.append(1) or original(*a, **k))
    service = Service(predictor, max_waiting=64, batch_size=2)

    async def visit():
        waiting = asyncio.ensure_future(all_answers(service, [posted(photo.read_bytes())] * 40))
        while service.inside < 40 or len(read) < 6:
            await asyncio.sleep(0.01)
        before = len(read)
        held.may_go.set()
        return before, await waiting

    before, answers = asyncio.run(visit())
    assert before == 6 and len(read) == 40  # 2 in the model, 2 behind it, 2 read or written
    assert {answer.status_code for answer in answers} == {200}
    service.close()


def test_images_of_one_size_that_wait_are_seen_together():
    batches_seen, may_go = [], threading.Event()

    def find(prepared):
        assert may_go.wait(HANG)
        batches_seen.append([one["number"] for one in prepared])
        return [one["number"] for one in prepared]

    async def visit():
        batches = Batches(find, 3)
        sizes = [8, 8, 8, 8, 8, 9, 9, 8]
        images = ({"number": k, "image": torch.zeros(3, s, s)} for k, s in enumerate(sizes))
        asked = [asyncio.ensure_future(batches.find(image)) for image in images]
        await asyncio.sleep(0.01)
        asked[3].cancel()  # who has gone is left out
        await asyncio.sleep(0)
        may_go.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        batches.close()
        return found

    found = asyncio.run(visit())
    assert [f for f in found if isinstance(f, int)] == [0, 1, 2, 4, 5, 6, 7]
    assert sorted(sum(batches_seen, [])) == [0, 1, 2, 4, 5, 6, 7]
    # What the thread has begun with before the others came may be alone.
    assert all(len(batch) <= 3 for batch in batches_seen)
    assert max(map(len, batches_seen)) > 1
    assert not any({k, 5} <= set(batch) for batch in batches_seen for k in (4, 7))


def test_a_model_that_fails_is_told_to_all_who_wait_and_to_health(predictor, photo, monkeypatch):
    def broken(prepared):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    service = Service(predictor, max_waiting=8)
    monkeypatch.setattr(predictor.predictor, "find", broken)
    for _ in range(3):
        answer = ask(service, method="GET", url="/health")
        assert answer.status_code == 200 and answer.json()["status"] == "ok"
        with pytest.raises(RuntimeError, match="CUDA error"):  # a server logs it and answers 500
            ask(service, **posted(photo.read_bytes()))
    assert ask(service, method="GET", url="/health").status_code == 503
    monkeypatch.undo()
    assert ask(service, **posted(photo.read_bytes())).status_code == 200
    assert ask(service, method="GET", url="/health").status_code == 200
    assert service.inside == 0
    service.close()


def test_who_has_gone_is_not_computed_for(service, photo):
    async def gone():
        return True

    async def visit():
        stream = io.BytesIO(photo.read_bytes())
        await service.answer("street.png", stream, "coco", 0.5, None, gone)

    with pytest.raises(Exception) as error:
        asyncio.run(visit())
    assert type(error.value).__name__ == "GoneError"
    assert "rdsnet_model_seconds_count 0.0" in service.metrics.text().decode()


def test_metrics_count_what_was_answered(service, photo):
    requests = [posted(photo.read_bytes())] * 3 + [posted(b"no image"), posted(b"\0" * 600_000)]
    answers = asyncio.run(all_answers(service, [*requests, posted(b"", "/predict/else")]))
    objects = sum(int(answer.headers.get("X-RDSNet-Objects", 0)) for answer in answers)
    answer = ask(service, method="GET", url="/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if line[0] != "#")
    for status, number in ((200, 3), (415, 1), (413, 1)):
        assert float(lines[f'rdsnet_requests_total{{status="{status}"}}']) == number
    assert 'rdsnet_requests_total{status="404"}' not in lines
    assert float(lines["rdsnet_request_seconds_count"]) == 5
    assert float(lines["rdsnet_batch_images_sum"]) == 3
    assert float(lines["rdsnet_objects_total"]) == objects > 0
    assert float(lines["rdsnet_requests_inside"]) == 0
    assert float(lines["process_resident_memory_bytes"]) > 0


def test_the_page_that_explains_it_loads_nothing_from_elsewhere(service):
    page = ask(service, method="GET", url="/docs")
    assert page.status_code == 200 and "http://" not in page.text and "https://" not in page.text
    for line in page.text.splitlines():
        for attribute in ('src="', 'href="'):
            if attribute in line:
                address = line.split(attribute)[1].split('"')[0]
                assert ask(service, method="GET", url=address).status_code == 200, address
    description = ask(service, method="GET", url="/openapi.json").json()
    assert description["openapi"].startswith("3.0") and '"null"' not in json.dumps(description)
    operation = description["paths"]["/predict"]["post"]
    assert {p["name"] for p in operation["parameters"]} == {"score_threshold", "classes", "format"}
    assert {"multipart/form-data", "application/octet-stream"} == set(
        operation["requestBody"]["content"]
    )
    assert {"200", "400", "413", "415", "422", "503"} <= set(operation["responses"])
    assert ask(service, method="GET", url="/").headers["location"] == "/docs"


def test_geojson_is_what_the_command_writes(service, photo):
    url = "/predict?score_threshold=0.05"
    objects = ask(service, **posted(photo.read_bytes(), url)).json()["annotations"]
    for request in (
        as_form(photo.read_bytes(), url=f"{url}&format=geojson"),
        posted(photo.read_bytes(), url, headers={"Accept": "application/geo+json"}),
    ):
        answer = ask(service, **request)
        assert answer.headers["content-type"] == "application/geo+json"
        collection = answer.json()
        assert collection["type"] == "FeatureCollection"
        assert len(collection["features"]) == len(objects) > 0
