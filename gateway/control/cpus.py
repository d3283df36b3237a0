"""How many workers `workers = "auto"` is: the CPUs that this process may use.

That is the smaller of two: the CPUs that it may run on (sched_setaffinity(2), cpuset), and the time
that a cgroup lets it have (`cpu.max` of version 2, `cpu.cfs_quota_us` of version 1), which is how
container runtimes and Kubernetes set a limit. Of a limit of 2.5 CPUs two workers get their fill;
a third would be stopped in the middle of its turns. More than `WORKERS_MAX`, which a table may not
ask for either, would have no place in the memory that they share.
"""

import os
from pathlib import Path

from gateway.control.shared import WORKERS_MAX

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def usable() -> list[int]:
    """The CPUs that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def workers_auto() -> int:
    """How many workers there are where the table does not say."""
    count = len(usable())
    quota = quota_of(OWN, CGROUPS)
    return min(WORKERS_MAX, count if quota is None else max(1, min(count, int(quota))))


def quota_of(own: Path, mount: Path) -> float | None:
    """How many CPUs the cgroups give, of the file that names our own and of what is mounted; None
    if they do not limit it, or cannot be read.

    All above our own count, too: the smallest holds. In a container the mount is our own group,
    whatever the path in the file, which is that of the host.
    """
    found = []
    for line in _read(own).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            found += [_version_2(group) for group in _groups(mount, path)]
        elif "cpu" in controllers.split(","):
            for folder in (controllers, "cpu"):
                found += [_version_1(group) for group in _groups(mount / folder, path)]
    return min((quota for quota in found if quota is not None), default=None)


def _groups(mount: Path, path: str) -> list[Path]:
    """A group's folder and all above it, as far as the mount."""
    group = mount / path.lstrip("/")
    return [group, *(each for each in group.parents if each.is_relative_to(mount))]


def _version_2(group: Path) -> float | None:
    words = _read(group / "cpu.max").split()
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _version_1(group: Path) -> float | None:
    quota = _read(group / "cpu.cfs_quota_us").strip()
    period = _read(group / "cpu.cfs_period_us").strip()
    if not quota or not period or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def _read(file: Path) -> str:
    """What stands in it; nothing where it cannot be read."""
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""
