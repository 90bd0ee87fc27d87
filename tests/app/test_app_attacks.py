"""The local page against people who mean it harm: paths, sizes, types, and many at once."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.hanging import HANG
from helpers.uploads import NO_IMAGES

pytest.importorskip("gradio")
import httpx  # noqa: E402 (comes with gradio)

# The page is started anew, by the command line, with limits of 0.5 MB and 1 megapixel.
from app.test_app import page  # noqa: E402, F401

pytestmark = pytest.mark.slow
API = "/gradio_api"


def upload(client: httpx.Client, name: str, content: bytes) -> httpx.Response:
    return client.post(f"{API}/upload", files={"files": (name, content)})


def ask(client: httpx.Client, path: str, session: str) -> str:
    """Ask for the objects of a file that lies at ``path`` on the server; the events, as text."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    inputs = [file, 0.5, False, []]  # score, whether by class, classes shown
    request = {"data": inputs, "fn_index": 0, "session_hash": session, "trigger_id": 1}
    joined = client.post(f"{API}/queue/join", json=request)
    if joined.status_code != 200:
        return joined.text
    with client.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as events:
        text = ""
        for line in events.iter_lines():
            text += line
            if "process_completed" in line or "close_stream" in line:
                break
    return text


def test_files_of_the_machine_stay_there(page, weights, tmp_path):  # noqa: F811
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret of this machine")
    tricks = [
        f"{API}/file={secret}",
        f"{API}/file=/etc/passwd",
        f"{API}/file=../../../../../../etc/passwd",
        f"{API}/file=%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        f"{API}/file=file:///etc/passwd",
        f"{API}/file={weights}",
        f"/file={secret}",
        "/static/../../../../etc/passwd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    ]
    with httpx.Client(base_url=page, timeout=HANG) as client:
        for trick in tricks:
            answer = client.get(trick)
            assert answer.status_code >= 400, f"{trick}: {answer.status_code}"
            assert "root:" not in answer.text and "the secret" not in answer.text
        # Nor does the model look at a file that was not uploaded.
        for number, path in enumerate((str(secret), "/etc/passwd", weights)):
            answer = ask(client, path, f"thief{number}")
            assert '"success":true' not in answer.replace(" ", "")
            assert "root:" not in answer and "the secret" not in answer


def test_uploads_cannot_choose_where_they_go_and_how_large_they_are(page, photo):  # noqa: F811
    with httpx.Client(base_url=page, timeout=HANG) as client:
        answer = upload(client, "../../../../evil.png", photo.read_bytes())
        if answer.status_code == 200:
            (path,) = answer.json()
            assert "uploads" in Path(path).parts and ".." not in Path(path).parts
        too_large = upload(client, "large.png", b"\0" * (600 * 1024))
        assert too_large.status_code in (400, 413), too_large.status_code
        assert client.get("/").status_code == 200


def test_wrong_types_are_answered_in_words(page):  # noqa: F811
    """A pickle, a yaml file, a zip and a script under the names of images."""
    with httpx.Client(base_url=page, timeout=HANG) as client:
        for number, content in enumerate(NO_IMAGES):
            (path,) = upload(client, f"picture{number}.png", content).json()
            answer = ask(client, path, f"session{number}")
            assert f"'picture{number}.png' is not an image that can be read" in answer
            assert "Traceback" not in answer


def test_many_at_once_are_all_answered(page, photo):  # noqa: F811
    def visit(number: int) -> str:
        with httpx.Client(base_url=page, timeout=HANG) as client:
            (path,) = upload(client, f"street{number}.png", photo.read_bytes()).json()
            return ask(client, path, f"visitor{number}")

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(visit, range(24)))
    found = [a for a in answers if f"objects in street{answers.index(a)}.png" in a]
    assert len(found) == 24, [json.dumps(a)[:300] for a in answers if a not in found][:2]
    assert httpx.get(page, timeout=HANG).status_code == 200
