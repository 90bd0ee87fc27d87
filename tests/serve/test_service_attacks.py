"""The service against people who mean it harm: types, sizes, paths, and bodies that never end."""

import asyncio
import io
import struct
import zlib

import pytest
from helpers.uploads import NO_IMAGES
from PIL import Image

for package in ("fastapi", "prometheus_client", "python_multipart", "swagger_ui_bundle", "httpx"):
    pytest.importorskip(package, reason="needs rdsnet[serve]")
from serve.clients import all_answers, as_form, ask, posted  # noqa: E402
from serve.test_service import predictor, service  # noqa: E402, F401


def detail(answer):
    """What a refusal says, which is one sentence or two, without insides."""
    text = answer.json()["detail"]
    assert "Traceback" not in text and "/tmp" not in text and "\n" not in text
    return text


@pytest.mark.parametrize("content", NO_IMAGES)
def test_wrong_types_are_answered_in_words(service, content):  # noqa: F811
    """A pickle, a yaml file, a zip and a script under the name of an image."""
    answer = ask(service, **as_form(content, "picture.png"))
    assert answer.status_code == 415
    assert "'picture.png' is not an image that can be read" in detail(answer)
    assert ask(service, **posted(content)).status_code == 415


def png_of(width, height):
    """A whole PNG whose header promises these sides, of a few bytes."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100_000)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (1100, "'huge.png' has 1.2 megapixels; at most 1 are taken"),
        (40_000, "'huge.png' has too many pixels; at most 1 megapixels are taken"),
        (2**31 - 1, "'huge.png' has too many pixels"),
    ],
)
def test_few_bytes_that_would_become_many_pixels_are_refused(service, side, message):  # noqa: F811
    answer = ask(service, **as_form(png_of(side, side), "huge.png"))
    assert answer.status_code == 413 and message in detail(answer)


def test_damaged_images_are_refused(service, photo):  # noqa: F811
    content = photo.read_bytes()
    answer = ask(service, **as_form(content[: len(content) // 2], "half.png"))
    assert answer.status_code == 422
    assert detail(answer) == "'half.png' cannot be read: it is damaged or cut off."
    answer = ask(service, **posted(png_of(900, 900)))
    assert answer.status_code == 422 and "damaged" in detail(answer)
    buffer = io.BytesIO()
    Image.new("F", (30, 20)).save(buffer, "TIFF")
    answer = ask(service, **as_form(buffer.getvalue(), "heights.tif"))
    assert answer.status_code == 422 and "floating-point pixels" in detail(answer)


@pytest.mark.parametrize(
    "name",
    [
        "../../../../etc/passwd",
        "/etc/passwd",
        "..\\..\\windows\\system32\\config",
        "file:///etc/passwd",
        "evil\n\x1b[2J.png",
        "x" * 3000,
        "..",
    ],
)
def test_names_are_no_paths_and_stay_short(service, photo, name):  # noqa: F811
    answer = ask(service, **as_form(photo.read_bytes(), name))
    shown = answer.json()["images"][0]["file_name"]
    assert answer.status_code == 200 and len(shown) <= 100
    assert not set("/\n\x1b") & set(shown) and "\\windows" not in shown
    assert "etc" not in shown


def test_files_of_the_machine_stay_there(service, tmp_path):  # noqa: F811
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret of this machine")
    for trick in (
        f"/{secret}",
        f"/docs-assets/..%2f..%2f..%2f..%2f..%2f..%2f{secret}",
        f"/docs-assets/{secret}",
        f"/predict?path={secret}",
        f"/predict?format=../{secret}",
        f"/predict?classes={secret}",
    ):
        for method in ("GET", "POST"):
            answer = ask(service, method=method, url=trick)
            assert answer.status_code >= 400 and "the secret" not in answer.text, trick


def test_forms_that_are_none(service, photo):  # noqa: F811
    content = photo.read_bytes()
    cases = {
        "The form has no file (its fields: 'x')": {"files": {"x": (None, "y")}},
        "Too many files": {"files": [("a", ("a", content)), ("b", ("b", content))]},
        "Missing boundary": {"headers": {"Content-Type": "multipart/form-data"}, "content": b"x"},
        "The image is empty": {"content": b""},
        "multipart": {
            "headers": {"Content-Type": "multipart/form-data; boundary=b"},
            "content": content,
        },
    }
    for message, request in cases.items():
        answer = ask(service, method="POST", url="/predict", **request)
        assert answer.status_code == 400 and message in detail(answer)
    many = {f"field{k}": (None, "y") for k in range(500)}
    answer = ask(service, method="POST", url="/predict", files=many)
    assert answer.status_code == 400 and "Too many fields" in detail(answer)


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "multipart/form-data; boundary=b"}])
def test_a_body_without_an_announced_end_is_read_up_to_the_limit(service, headers):  # noqa: F811
    """The sender counts how much was taken of what might go on for ever."""
    taken = 0

    async def endless():
        nonlocal taken
        yield b'--b\r\nContent-Disposition: form-data; name="i"; filename="i"\r\n\r\n'
        while True:
            taken += 1
            yield b"\0" * 2**16

    answer = ask(service, method="POST", url="/predict", content=endless(), headers=headers)
    assert answer.status_code == 413 and "more than 0.5 MB" in detail(answer)
    assert taken <= 9 and service.inside == 0


def test_a_body_that_does_not_come_makes_room_for_others(service, photo):  # noqa: F811
    async def visit():
        may_end = asyncio.Event()

        async def stuck():
            yield photo.read_bytes()[:1000]
            await may_end.wait()

        request = {"method": "POST", "url": "/predict", "content": stuck()}
        (answer,) = await all_answers(service, [request], max_upload_seconds=0.05)
        return answer

    answer = asyncio.run(visit())
    assert answer.status_code == 408 and "not there after 0.05 seconds" in detail(answer)
    assert service.inside == 0


def test_the_announced_length_is_enough_to_refuse(service):  # noqa: F811
    headers = {"Content-Length": str(10**12)}
    answer = ask(service, **posted(b"x", headers=headers))
    assert answer.status_code == 413
