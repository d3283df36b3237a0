"""The wheel in a clean root: a Debian with Python, and no liburing, compiler or header.

debootstrap makes the root once, in `.tools/clean-root` (a minute); the wheel is built here and
installed there from a folder of wheels, offline. It takes root, as debootstrap and chroot do; what
is mounted is mounted in a namespace that ends with each command.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from house.test_wheel import ROOT, run, source_of

SUITE = "bookworm"
CLEAN = ROOT / ".tools" / "clean-root"
PLACE = "/opt/gateway"
INSIDE = """\
mount -t proc proc "$1/proc" && mount --bind /dev "$1/dev" && mount -t tmpfs tmpfs "$1/tmp" &&
root=$1 && shift && exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" "$@"
"""
# debootstrap cannot take a path with a space in it: it gets another name for the folder.
MAKE = """\
mount --bind "$1" "$2" &&
exec debootstrap --variant=minbase --include=python3,python3-venv "$3" "$2"
"""

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.ring,
    pytest.mark.skipif(os.geteuid() != 0, reason="a clean root takes root"),
    pytest.mark.skipif(not shutil.which("debootstrap"), reason="debootstrap is not installed"),
    pytest.mark.skipif(not shutil.which("cc"), reason="cc is not installed"),
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the clean root has Python 3.11"),
]


def inside(*command: str) -> str:
    """Run this in the clean root; what it printed."""
    return run("unshare", "--mount", "sh", "-c", INSIDE, "sh", CLEAN, *command, cwd=ROOT)


@pytest.fixture(scope="module")
def clean_root() -> Path:
    """Made once; later runs take it as it is."""
    if not CLEAN.is_dir():
        part = CLEAN.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        with tempfile.TemporaryDirectory(dir="/tmp") as plain:
            run("unshare", "--mount", "sh", "-c", MAKE, "sh", part, plain, SUITE, cwd=ROOT)
        part.rename(CLEAN)
    shutil.rmtree(CLEAN / PLACE[1:], ignore_errors=True)
    return CLEAN


@pytest.fixture(scope="module")
def installed(clean_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel and all that it needs, in an environment of the clean root."""
    source = source_of(tmp_path_factory.mktemp("clean"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", "wheels", ".", cwd=source)
    run(*pip, "download", "--no-deps", "--only-binary", ":all:", "-d", "wheels",
        "-r", ROOT / "requirements" / "run.txt", cwd=source)
    place = clean_root / PLACE[1:]
    place.mkdir(parents=True)
    shutil.copytree(source / "wheels", place / "wheels")
    shutil.copy(Path(__file__).with_name("echo_in_clean_root.py"), place)
    inside("python3", "-m", "venv", f"{PLACE}/venv")
    inside(f"{PLACE}/venv/bin/python", "-m", "pip", "-q", "install", "--no-index", "--find-links",
           f"{PLACE}/wheels", "ws-edge-gateway")
    return clean_root


def test_nothing_is_there_to_build_with(clean_root: Path) -> None:
    """No compiler, no headers of Python, no liburing of either kind."""
    for name in ("cc", "gcc", "clang", "make"):
        assert not (clean_root / "usr/bin" / name).exists()
    assert not list((clean_root / "usr").rglob("liburing*"))
    assert not list((clean_root / "usr").rglob("Python.h"))


def test_the_doctor_finds_all_parts_and_io_uring(installed: Path) -> None:
    told = inside(f"{PLACE}/venv/bin/gateway", "doctor")
    for words in ("relay is here", "io_uring is here", "relays are compiled",
                  "io_uring can be had"):
        assert words in told, told


@pytest.mark.parametrize("form", ["completions", "readiness"])
def test_it_echoes_through_a_ring(installed: Path, form: str) -> None:
    """Two gateways, one behind the other; both end well."""
    told = inside(f"{PLACE}/venv/bin/python", f"{PLACE}/echo_in_clean_root.py", form)
    assert told.count("engine=io_uring") == 2
    assert f"relays by {form}" in told
    assert "echoed: from a clean root" in told
