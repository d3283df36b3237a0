"""Builds the compiled parts of the benchmark: the load generator and the floors.

Law: they are built anew when a source is newer, with warnings as errors, into `build/bench`.
"""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NATIVE = Path(__file__).resolve().parent / "native"
BUILT = ROOT / "build" / "bench"
FLAGS = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]
SOURCES = {
    "load": ["load.c", "load_wire.c"],
    "floor_epoll": ["floor_epoll.c"],
    "floor_splice": ["floor_splice.c"],
    "floor_uring": ["floor_uring.c"],
}
LIBRARIES = {"floor_uring": ["-luring"], "load": ["-lssl", "-lcrypto"]}
HEADERS = {
    "floor_uring": ("liburing.h", "liburing-dev"),
    "load": ("openssl/ssl.h", "libssl-dev"),
}


class BuildError(Exception):
    """A program that does not compile; the text is the compiler's."""


def missing(name: str) -> str:
    """Why this program cannot be built here; "" if it can."""
    compiler = shutil.which("cc")
    if compiler is None:
        return "no C compiler (Debian: gcc)"
    if name in HEADERS:
        header, package = HEADERS[name]
        probe = subprocess.run(
            [compiler, "-E", "-include", header, "-x", "c", "/dev/null"], capture_output=True
        )
        if probe.returncode:
            return f"no {header} (Debian: {package})"
    return ""


def build(name: str) -> Path:
    """The path of the program, compiled if it was not. Raises BuildError."""
    if reason := missing(name):
        raise BuildError(f"{name}: {reason}")
    program = BUILT / name
    newest = max(path.stat().st_mtime for path in NATIVE.iterdir())
    if program.exists() and program.stat().st_mtime > newest:
        return program
    BUILT.mkdir(parents=True, exist_ok=True)
    fresh = program.with_suffix(".new")
    sources = [str(NATIVE / source) for source in SOURCES[name]]
    command = ["cc", *FLAGS, "-o", str(fresh), *sources, *LIBRARIES.get(name, [])]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise BuildError(f"{name}:\n{result.stderr}")
    fresh.replace(program)  # a program that runs cannot be written to, but replaced
    return program
