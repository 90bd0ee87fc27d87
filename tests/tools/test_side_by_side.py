"""How many tests run side by side."""

import pytest
import side_by_side as tool


@pytest.mark.parametrize(
    "cpus, gigabytes, threads, expected",
    [(2, 24, 1, 2), (64, 32, 1, 8), (8, 64, 2, 4), (2, 2, 1, 1), (1, 24, 2, 1)],
)
def test_a_core_and_memory_for_each(monkeypatch, cpus, gigabytes, threads, expected):
    machine = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": gigabytes * 2**30 // 4096}
    monkeypatch.setattr(tool, "usable_cpus", lambda: cpus)
    monkeypatch.setattr(tool.os, "sysconf", machine.__getitem__)
    assert tool.processes(threads) == expected
