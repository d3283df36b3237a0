"""The root of the virtual machine: what this machine runs the tests with, as one initramfs.

This Python with its library, the packages of its environment, the shared libraries of all that, a
shell, `openssl`, the project as it lies here with its compiled parts, and the kernel's modules. So
what is tried there is what was built here, and nothing is installed. Each file keeps its path.

A cpio archive in the form "newc": a header of hexadecimal numbers, the name, the content, each
filled up to four bytes (Documentation/driver-api/early-userspace/buffer-format.rst).
"""

import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from ktls import kernel

PROJECT = Path("/gateway")          # where it lies in the machine
PACKAGES = PROJECT / "packages"
PARTS = ("gateway", "tests", "tools", "pyproject.toml", "certs", "routes")
PROGRAMS = ("sh", "openssl", "cat", "ls")
SKIPPED = {
    "node_modules", "test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip",
    "site-packages", "dist-packages", "turtledemo", "bench", "corpus", "golden", "autobahn",
}
HEAVY = {                           # of the environment: for checks and builds, not for tests
    "mypy", "mypyc", "ruff", "pip", "setuptools", "cython", "atheris", "ast-serialize", "librt",
    "pytest-xdist", "execnet",
}
FILES = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "/etc/nsswitch.conf": "hosts: files\n",
}


class Archive:
    """Writes one archive; parents of what is put in come before it."""

    def __init__(self, out: BinaryIO):
        self._out = out
        self._made: set[str] = set()

    def folder(self, path: str) -> None:
        """An empty folder, and those above it."""
        if path in ("", "/") or path in self._made:
            return
        self.folder(str(Path(path).parent))
        self._made.add(path)
        self._entry(path, stat.S_IFDIR | 0o755, b"")

    def file(self, path: str, content: bytes, *, runs: bool = False, time: int = 0) -> None:
        """A file, once; the first of a name counts."""
        if path in self._made:
            return
        self.folder(str(Path(path).parent))
        self._made.add(path)
        self._entry(path, stat.S_IFREG | (0o755 if runs else 0o644), content, time)

    def copy(self, source: Path, path: str) -> None:
        """A file of this machine, with its time: what Python has compiled counts by that."""
        about = source.stat()
        runs = bool(about.st_mode & stat.S_IXUSR)
        self.file(path, source.read_bytes(), runs=runs, time=int(about.st_mtime))

    def close(self) -> None:
        """The end of the archive."""
        self._entry("TRAILER!!!", 0, b"")

    def _entry(self, path: str, mode: int, content: bytes, time: int = 0) -> None:
        name = path.lstrip("/").encode() + b"\0"
        inode = len(self._made)
        fields = (inode, mode, 0, 0, 1, time, len(content), 0, 0, 0, 0, len(name), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self._out.write(head + bytes(-len(head) % 4))
        self._out.write(content + bytes(-len(content) % 4))


def write(place: Path) -> None:
    """Make the initramfs; its program is `tests/ktls/guest.py`."""
    wanted = [*_python(), *_packages(), *_project(), *_programs()]
    with place.open("wb") as out:
        archive = Archive(out)
        for folder in ("/proc", "/sys", "/dev", "/tmp", "/run", "/root"):
            archive.folder(folder)
        for name, text in FILES.items():
            archive.file(name, text.encode())
        for number, module in enumerate(kernel.modules()):
            name = module.name.split(".ko", maxsplit=1)[0]
            archive.file(f"/modules/{number:02}-{name}.ko", kernel.plain(module))
        for source, path in wanted:
            archive.copy(source, path)
        for source in _libraries(source for source, _ in wanted):
            archive.copy(source, str(source))
        archive.file("/init", _init().encode(), runs=True)
        archive.close()


def _init() -> str:
    """The first program there is. (A `#!` line may be too short for the path of a Python.)"""
    python = Path(sys.executable).resolve()
    return (
        "#!/bin/sh\n"
        f"export PYTHONPATH={PACKAGES}:{PROJECT}:{PROJECT}/tests\n"
        "export KTLS_MACHINE=1 HOME=/root PATH=/usr/bin:/bin\n"
        f"cd {PROJECT} && exec {python} -u -m ktls.guest\n"
    )


def _files(top: Path, skipped: set[str]) -> Iterator[Path]:
    for folder, below, names in os.walk(top):
        below[:] = sorted(name for name in below if name not in skipped)
        for name in sorted(names):
            if not name.endswith((".a", ".c", ".html")) or "protocol" in folder:
                yield Path(folder, name)


def _python() -> Iterator[tuple[Path, str]]:
    program = Path(sys.executable).resolve()
    yield program, str(program)
    library = Path(sysconfig.get_path("stdlib"))
    for path in _files(library, SKIPPED):
        if not path.parent.name.startswith("config-"):
            yield path, str(path)


def _packages() -> Iterator[tuple[Path, str]]:
    """What is installed beside the project, but for HEAVY."""
    for found in importlib.metadata.distributions():
        name = found.metadata["Name"].lower().replace("_", "-")
        if name in HEAVY or name == "ws-edge-gateway":
            continue
        for file in found.files or ():
            source = Path(str(found.locate_file(file)))
            if ".." not in file.parts and source.is_file():
                yield source, str(PACKAGES / file)


def _project() -> Iterator[tuple[Path, str]]:
    for part in PARTS:
        top = kernel.ROOT / part
        for path in [top] if top.is_file() else _files(top, SKIPPED - {"tests"}):
            yield path, str(PROJECT / path.relative_to(kernel.ROOT))


def _programs() -> Iterator[tuple[Path, str]]:
    for name in PROGRAMS:
        found = shutil.which(name)
        assert found is not None, f"{name} is not installed"
        yield Path(found).resolve(), f"/bin/{name}"


def _libraries(sources: Iterable[Path]) -> list[Path]:
    """The shared libraries that the dynamic linker finds for these."""
    linked = [
        str(path)
        for path in sources
        if re.search(r"\.so(\.|$)", path.name) or os.access(path, os.X_OK)
        if path.open("rb").read(4) == b"\x7fELF"
    ]
    told = subprocess.run(["ldd", *linked], stdout=subprocess.PIPE, text=True).stdout
    return [Path(path) for path in sorted(set(re.findall(r"(/\S+\.so\S*) \(0x", told)))]
