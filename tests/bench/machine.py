"""What machine a run was made on: kind, kernel, versions; nothing that names its owner."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path


def describe(getppid_ns: float) -> dict[str, str]:
    """Facts in the order in which a report shows them."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "distribution": _distribution(),
        "Python": platform.python_version(),
        "system call": f"{getppid_ns:.0f} ns for getppid",
    }


def _line(path: str, key: str, separator: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(separator)
        if name.strip() == key:
            return value.strip().strip('"')
    return ""


def _processor() -> str:
    name = _line("/proc/cpuinfo", "model name", ":") or platform.machine()
    family = _line("/proc/cpuinfo", "cpu family", ":")
    model = _line("/proc/cpuinfo", "model", ":")
    flags = _line("/proc/cpuinfo", "flags", ":").split()
    kind = ", virtual" if "hypervisor" in flags else ""
    return f"{name} (family {family}, model {model}{kind})" if family else name


def _distribution() -> str:
    return _line("/etc/os-release", "PRETTY_NAME", "=") or "?"


def cores() -> tuple[int | None, int | None]:
    """Which core the proxy gets and which the load: the last and the first that we may use.

    (None, None) with a single core: then nothing is pinned, and no figure means much.
    """
    usable = sorted(os.sched_getaffinity(0))
    return (usable[-1], usable[0]) if len(usable) > 1 else (None, None)
