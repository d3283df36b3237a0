"""Coverage-guided fuzzing of every target, for a bounded time.

    python -m tests.fuzz.run --seconds 60 [--target NAME ...] [--seed N]
    python -m tests.fuzz.run --replay FILE --target NAME
    python -m tests.fuzz.run --merge

The seconds are for all targets together. It begins with the kept corpus and with what earlier runs
have grown in `.tools/fuzz/corpus`. An input that breaks a law is printed, and saved in
`.tools/fuzz/found`; copy it to `tests/fuzz/corpus/NAME` once it is mended. `--merge` takes over
those grown inputs that take the code a way which no kept one takes. Exit code 1 when something was
found, 2 when `atheris` is not there: it is a C++ library, with wheels for some Pythons only.
"""

import argparse
import hashlib
import importlib.util
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from .targets import CORPUS, TARGETS, corpus_of
from .work import HOUSE

ROOT = CORPUS.parents[2]
GROWN = ROOT / ".tools" / "fuzz" / "corpus"
FOUND = ROOT / ".tools" / "fuzz" / "found"
LENGTH_MAX = 1024                      # bytes of an input: short ones are found and read sooner
INPUT_LIMIT = 10                       # seconds for one input
MEMORY_MAX = 1024                      # MiB
MERGED_MAX = 400                       # bytes of an input that is kept in the repository
LINES_SHOWN = 40


def _child(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run libFuzzer on a target to its end."""
    command = [sys.executable, "-m", "tests.fuzz.child", name, *options]
    return subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", check=False,
    )


def _folders(name: str) -> list[str]:
    """Where a target's inputs are: the grown ones, which are added to, and the kept ones."""
    grown = GROWN / name
    grown.mkdir(parents=True, exist_ok=True)
    return [str(grown), str(CORPUS / name)]


def hunt(name: str, seconds: int, seed: int) -> bool:
    """Fuzz one target; False if something was found, which is printed."""
    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    before = set(found.iterdir())
    done = _child(
        name, f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={LENGTH_MAX}",
        f"-timeout={INPUT_LIMIT}", f"-rss_limit_mb={MEMORY_MAX}", f"-artifact_prefix={found}/",
        "-print_final_stats=1", *_folders(name),
    )
    runs = [line for line in done.stdout.splitlines() if "number_of_executed_units" in line]
    count = runs[0].split()[-1] if runs else "?"
    new = sorted(set(found.iterdir()) - before)
    good = done.returncode == 0 and not new
    print(f"fuzz {name}: {count} inputs, {'nothing found' if good else 'FOUND'}", flush=True)
    if not good:
        print("\n".join(done.stdout.splitlines()[-LINES_SHOWN:]))
        for path in new:
            print(f"input: {path.read_bytes()!r}")
            print(f"again: python -m tests.fuzz.run --target {name} --replay '{path}'")
    return good


def reached(name: str, data: bytes) -> set[tuple[str, int, int]]:
    """The steps from line to line that an input makes the gateway's files take."""
    steps: set[tuple[str, int, int]] = set()

    def call(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        file = frame.f_code.co_filename
        if not file.startswith(HOUSE):
            return None
        before = 0

        def line(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
            nonlocal before
            steps.add((file, before, frame.f_lineno))
            before = frame.f_lineno
            return line

        return line

    sys.settrace(call)
    try:
        TARGETS[name](data)
    finally:
        sys.settrace(None)
    return steps


def merge(name: str) -> None:
    """Take over those grown inputs that reach what the kept ones do not; the shortest first."""
    known: set[tuple[str, int, int]] = set()
    for path in corpus_of(name):
        known |= reached(name, path.read_bytes())
    count = 0
    grown = (path.read_bytes() for path in (GROWN / name).glob("*"))
    for data in sorted(grown, key=lambda data: (len(data), data)):
        new = reached(name, data) - known if len(data) <= MERGED_MAX else None
        if new:
            known |= new
            digest = hashlib.sha256(data).hexdigest()
            (CORPUS / name / f"grown-{digest[:10]}").write_bytes(data)
            count += 1
    print(f"{name}: {count} taken over, {len(corpus_of(name))} in all")


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.run")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--target", choices=list(TARGETS), action="append")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--replay", type=Path, metavar="FILE")
    parser.add_argument("--merge", action="store_true")
    given = parser.parse_args()
    names: list[str] = given.target or list(TARGETS)
    if given.replay:
        for name in names:
            TARGETS[name](given.replay.read_bytes())
        return 0
    if given.merge:
        for name in names:
            merge(name)
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("fuzz: atheris is not installed (pip install atheris)")
        return 2
    print(f"fuzz: {len(names)} targets, seed {given.seed}", flush=True)
    seconds = max(1, given.seconds // len(names))
    results = [hunt(name, seconds, given.seed) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
