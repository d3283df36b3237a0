"""Layers point down: the import law of the house, kept by parsing every file under gateway/.

The table says, for each layer, which files it has, which layers it may import, which packages from
outside, and which modules of the standard library it must not touch. An import inside a function
or under TYPE_CHECKING counts like any other. A file in no layer is a failure: give it a place.
"""

import ast
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Kernel, clock, threads, files, loggers: what only the engine and control may know.
IO = {
    "asyncio", "concurrent", "fcntl", "ftplib", "glob", "http.client", "http.server", "io",
    "logging", "mmap", "multiprocessing", "queue", "resource", "sched", "select", "selectors",
    "shutil", "signal", "smtplib", "socket", "socketserver", "ssl", "subprocess", "syslog",
    "tempfile", "termios", "threading", "time", "urllib.request",
}
DATA_TYPES = {
    "array", "base64", "bisect", "codecs", "collections", "dataclasses", "enum", "errno",
    "functools", "hashlib", "heapq", "ipaddress", "itertools", "math", "operator", "re", "string",
    "struct", "types", "typing",
}


@dataclass(frozen=True)
class Layer:
    """One row of the law. Modules are named by their full names; a package covers what is in it."""

    name: str
    files: tuple[str, ...]                        # below gateway, without .py
    layers: tuple[str, ...]                       # that it may import, itself included
    packages: frozenset[str] = frozenset()        # from outside the standard library
    only: frozenset[str] = frozenset()            # of the standard library; empty: all but `never`
    never: frozenset[str] = frozenset()
    types_only: frozenset[str] = field(default=frozenset({"Random"}))  # all that `random` is for


LAW = (
    Layer(
        "words",
        files=(
            "__init__", "errors", "events", "frames", "heartbeat", "leg", "relaying",
            "servernames", "table",
        ),
        layers=("words",),
        only=frozenset(DATA_TYPES),
    ),
    Layer(
        "policy",
        files=("routing", "upstreams", "limits", "governor", "balance"),
        layers=("words", "policy"),
        never=frozenset(IO | {"datetime", "os", "pathlib", "secrets"}),
    ),
    Layer(
        "protocol",
        files=("protocol",),
        layers=("words", "policy", "protocol"),
        packages=frozenset({"h11", "httptools", "wsproto"}),
        never=frozenset(IO | {"datetime", "secrets"}),
    ),
    Layer(
        "engine",
        files=("engine",),
        layers=("words", "engine"),
        packages=frozenset({"uvloop"}),
        never=frozenset({"logging"}),
    ),
    Layer(
        "control",
        files=("__main__", "control"),
        layers=("words", "policy", "protocol", "engine", "control"),
        packages=frozenset({
            "click", "cryptography", "prometheus_client", "starlette", "tomli", "uvicorn", "uvloop",
            "watchfiles",
        }),
        never=frozenset({"logging"}),  # report.py is the one writer
    ),
)
BOTH_SIBLINGS = "control/worker"  # the only file that may import protocol and engine


def sources() -> list[str]:
    """Every Python file under gateway/, without its suffix."""
    folder = ROOT / "gateway"
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.py"))


def layer_of(file: str) -> Layer | None:
    """The layer that a file (`routing`, `protocol/session`) belongs to."""
    first = Path(file).parts[0]
    return next((layer for layer in LAW if first in layer.files), None)


def imports(tree: ast.AST) -> list[str]:
    """Every module that is imported, as its full name; of `from a import b` both a and a.b."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return found


def covers(names: frozenset[str], module: str) -> bool:
    """True if one of the names is this module or a package above it."""
    parts = module.split(".")
    return any(".".join(parts[:count]) in names for count in range(1, len(parts) + 1))


def violations(file: str, text: str) -> list[str]:
    """What a file does against the law; each entry is a sentence."""
    layer = layer_of(file)
    if layer is None:
        return [f"{file} is in no layer"]
    tree = ast.parse(text)
    found = []
    reached = set()
    for module in imports(tree):
        root = module.partition(".")[0]
        if module.startswith("."):
            found.append(f"{file} imports {module}: imports are absolute")
        elif root == "gateway":
            target = layer_of("/".join(module.split(".")[1:]) or "__init__")
            reached.add(target.name if target else "words")  # `from gateway import __version__`
            if target and target.name not in layer.layers:
                found.append(f"{file} ({layer.name}) imports {module} ({target.name})")
        elif root not in sys.stdlib_module_names:
            if root not in layer.packages:
                found.append(f"{file} ({layer.name}) imports the package {root}")
        elif covers(layer.never, module):
            found.append(f"{file} ({layer.name}) imports {module}")
        elif layer.only and root not in layer.only:
            found.append(f"{file} ({layer.name}) imports {module}, which is no data type")
    if {"protocol", "engine"} <= reached and file != BOTH_SIBLINGS:
        found.append(f"{file} imports protocol and engine: only {BOTH_SIBLINGS} may know both")
    if layer.name in ("policy", "protocol"):
        found += chance(file, tree, layer.types_only)
    return found


def chance(file: str, tree: ast.AST, allowed: frozenset[str]) -> list[str]:
    """Uses of `random` but for a type of what is passed in."""
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "random"
    } | {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "random"
        for alias in node.names
    }
    calls = {
        ast.unparse(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("random.Random", "Random")
    }
    found = [f"random.{name}" for name in sorted(used - allowed)] + sorted(calls)
    return [f"{file} uses {name}: chance is passed in" for name in found]


@pytest.mark.parametrize("file", sources())
def test_every_file_keeps_the_law(file: str) -> None:
    """Each import points down, and to nothing that the layer must not know."""
    assert violations(file, (ROOT / "gateway" / f"{file}.py").read_text()) == []


@pytest.mark.parametrize("path", sorted((ROOT / "gateway").rglob("*.p[yx][xd]")), ids=str)
def test_cython_is_in_the_engine_and_keeps_its_law(path: Path) -> None:
    """No Cython elsewhere; its imports and cimports of the house are those of the engine."""
    file = str(path.relative_to(ROOT / "gateway").with_suffix(""))
    assert file.startswith("engine/")
    text = "".join(plain_imports(path.read_text()))
    assert violations(file, text) == []


def plain_imports(text: str) -> list[str]:
    """The lines of Cython that import from Python or the house, as Python; C's are left out."""
    found = re.findall(r"^\s*((?:from\s+[\w.]+\s+)?c?import\s+[\w., ]+)", text, re.MULTILINE)
    lines = [line.replace("cimport", "import").strip().rstrip(",") + "\n" for line in found]
    of_c = re.compile(r"(from|import)\s+(libc|posix|cpython|cython)\b")
    return [line for line in lines if not of_c.match(line)]


def test_cython_imports_are_seen() -> None:
    """The test of the test: a cimport of the house counts, one of C does not."""
    text = "from libc.errno cimport errno\nfrom gateway.protocol cimport session\nimport socket\n"
    assert plain_imports(text) == ["from gateway.protocol import session\n", "import socket\n"]
    assert violations("engine/relay", "".join(plain_imports(text))) != []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("events", "import socket"),
        ("events", "import json"),
        ("frames", "from gateway.routing import RouteTable"),
        ("frames", "import h11"),
        ("routing", "import time"),
        ("routing", "def now():\n    from time import monotonic\n    return monotonic()"),
        ("routing", "from gateway.protocol import session"),
        ("upstreams", "import random\nrandom.choice([1])"),
        ("upstreams", "from random import choice"),
        ("upstreams", "import random\nchance = random.Random()"),
        ("protocol/session", "import ssl"),
        ("protocol/session", "from http import client"),
        ("protocol/session", "from gateway.engine.contract import Engine"),
        ("protocol/session", "import typing\nif typing.TYPE_CHECKING:\n    import ssl"),
        ("protocol/session", "import click"),
        ("engine/uv", "from gateway.protocol.session import Session"),
        ("engine/uv", "from gateway import routing"),
        ("engine/uv", "from ..control import worker"),
        ("control/cli", "import gateway.engine.uv, gateway.protocol.session"),
        ("control/cli", "import logging"),
        ("surprise", "import enum"),
    ],
)
def test_the_law_sees_what_is_against_it(file: str, text: str) -> None:
    """The test of the test: each of these breaks the law."""
    assert violations(file, text) != []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("events", "from gateway.errors import Fault\nimport enum"),
        ("upstreams", "import random\ndef pick(chance: random.Random) -> float: ..."),
        ("protocol/http1", "import h11\nfrom gateway import frames\nfrom http import HTTPStatus"),
        ("engine/uv", "import socket, asyncio, uvloop\nfrom gateway.relaying import Relay"),
        ("control/worker", "import gateway.engine.uv, gateway.protocol.session"),
    ],
)
def test_the_law_lets_pass_what_keeps_it(file: str, text: str) -> None:
    """And none of these does."""
    assert violations(file, text) == []
