"""CPUs that may be used: affinity, and quotas of both versions of cgroups, as files."""

import os
from pathlib import Path

import pytest

from gateway.control import cpus

TWO = "0::/kubepods/pod1/box\n"
ONE = "7:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("", {}, None),
        (TWO, {}, None),
        (TWO, {"kubepods/pod1/box/cpu.max": "max 100000\n"}, None),
        (TWO, {"kubepods/pod1/box/cpu.max": "250000 100000\n"}, 2.5),
        (TWO, {"kubepods/pod1/box/cpu.max": "max 100000\n",
               "kubepods/pod1/cpu.max": "50000 100000\n"}, 0.5),
        (TWO, {"cpu.max": "300000 100000\n"}, 3.0),           # a container's own namespace
        (ONE, {"cpu,cpuacct/docker/1/cpu.cfs_quota_us": "-1\n",
               "cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000\n"}, None),
        (ONE, {"cpu,cpuacct/docker/1/cpu.cfs_quota_us": "200000\n",
               "cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000\n"}, 2.0),
        (ONE, {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
    ],
)
def test_quotas(tmp_path: Path, own: str, files: dict[str, str], quota: float | None) -> None:
    write(tmp_path / "own", own)
    for name, text in files.items():
        write(tmp_path / "cgroup" / name, text)
    assert cpus.quota_of(tmp_path / "own", tmp_path / "cgroup") == quota


@pytest.mark.parametrize(
    ("allowed", "quota", "workers"),
    [(4, None, 4), (4, 2.5, 2), (4, 0.3, 1), (1, 8.0, 1), (768, None, 256), (768, 300.0, 256)],
)
def test_workers(
    monkeypatch: pytest.MonkeyPatch, allowed: int, quota: float | None, workers: int
) -> None:
    """The smaller of both; a part of a CPU is still a worker. No more than a table may ask for."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    monkeypatch.setattr(cpus, "quota_of", lambda *_: quota)
    assert cpus.workers_auto() == workers
