"""``rdsnet serve`` as a command: how it begins, ends, and stands a crowd."""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.hanging import HANG
from helpers.uploads import answering

for package in ("fastapi", "prometheus_client", "python_multipart", "swagger_ui_bundle", "httpx"):
    pytest.importorskip(package, reason="needs rdsnet[serve]")
import httpx  # noqa: E402

from rdsnet.cli import main  # noqa: E402

CLIENTS = 64
SECONDS = 8  # of the crowd
MORE_MIB = (
    64  # that a service may have at its end, beside a beginning in which all have been served
)


def served(model_files, weights, *more):
    words = ["--weights", weights, "--config-file", model_files["config"], "--port", "0", *more]
    return answering("serve", *words)


def test_mistakes_on_the_command_line(tmp_path, model_files, weights, capsys):
    assert main(["serve", "--weights", str(tmp_path / "none.pth")]) == 2
    assert "none.pth" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = ["serve", "--weights", weights, "--config-file", model_files["config"]]
        assert main([*words, "--port", port]) == 2
    message = capsys.readouterr().err
    assert f"port {port} of '127.0.0.1'" in message and "Choose another --port" in message
    assert main([*words, "--port", "99999"]) == 2
    assert "Choose another --port" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_what_is_missing_is_named_with_the_extra(package):
    code = f"""
import sys
sys.modules[{package!r}] = None
from rdsnet.cli import main
sys.exit(main(["serve", "--weights", "nuclei"]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG)
    assert run.returncode == 2
    assert f"the service needs {package}: pip install 'rdsnet[serve]'" in run.stderr


def half_sent(address: str, content: bytes) -> socket.socket:
    """A connection whose image has come in part."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=HANG)
    head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content[:100])
    return connection


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_whoever_is_inside_is_answered_before_the_end(model_files, weights, photo, ending):
    content = photo.read_bytes()
    with served(model_files, weights) as (address, process):
        connections = [half_sent(address, content) for _ in range(5)]
        while httpx.get(f"{address}/health", timeout=HANG).json()["inside"] < 5:
            time.sleep(0.01)
        process.send_signal(ending)
        while True:  # until nobody else is let in
            try:
                httpx.get(f"{address}/health", timeout=HANG)
            except httpx.TransportError:
                break
        for connection in connections:
            connection.sendall(content[100:])
        for connection in connections:
            answer = b""
            while part := connection.recv(2**16):
                answer += part
            assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["annotations"]
        assert process.wait(HANG) == 0
        assert "Ended; whoever was inside has been answered." in process.stdout.read()


def memory(process: subprocess.Popen) -> float:
    """MiB that a process has."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_crowd_is_served_without_an_error_and_without_more_memory(
    model_files, weights, photo, capsys
):
    """64 clients, each of which asks again as soon as it has its answer."""
    content = photo.read_bytes()

    def visit(end: float) -> list[float]:
        seconds = []
        with httpx.Client(base_url=address, timeout=HANG) as client:
            while not seconds or time.monotonic() < end:
                start = time.monotonic()
                answer = client.post("/predict", content=content)
                seconds.append(time.monotonic() - start)
                assert answer.status_code == 200, answer.text
                assert answer.json()["annotations"] == expected
        return seconds

    with served(model_files, weights) as (address, process), ThreadPoolExecutor(CLIENTS) as pool:
        expected = httpx.post(f"{address}/predict", content=content, timeout=HANG).json()
        expected = expected["annotations"]
        list(pool.map(visit, [time.monotonic() + SECONDS / 2] * CLIENTS))
        before = memory(process)
        times = sum(pool.map(visit, [time.monotonic() + SECONDS] * CLIENTS), [])
        after = memory(process)
    p50, p95 = (statistics.quantiles(times, n=20)[k] for k in (9, 18))
    with capsys.disabled():
        print(
            f"\n{len(times)} answers to {CLIENTS} clients: p50 {p50:.2f} s, p95 {p95:.2f} s; "
            f"{before:.0f} MiB before, {after:.0f} MiB after"
        )
    assert after - before < MORE_MIB
