"""Build the compiled parts for finding faults, in a folder of their own, and run tests on them.

    python tools/sanitize.py asan [PYTEST ARGUMENTS]    AddressSanitizer, UBSan, counters, laws
    python tools/sanitize.py 1 [PYTEST ARGUMENTS]       counters and laws alone

The argument is what GATEWAY_DEBUG is for `setup.py`. Without further arguments `TESTS` run.
Laws of this file:

- What is in use is not touched: the package is copied to `.tools/debug-...`, built there in place,
  and comes first on the path of the tests and of every program that they start.
- Only what changed is copied and built again.
- What was loaded is asked before anything is tested, since an editable install lies in wait.

Leaks are not looked for by the sanitizer: Python itself keeps much until its end. The counters of
the debug build do that, after every test (`tests/engine/conftest.py`).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = {".py", ".pyi", ".pyx", ".pxd", ".html", ".typed", ".toml", ".md", ""}
# What runs compiled code: the memory engine and relays in Python do not. Sizes are not those of a
# usual build.
TESTS = ("-q", "tests/words", "tests/engine", "-k", "not memory and not python and not is_small")
PROBE = "import gateway.engine.relay_loop as module; print(module.__file__)"
OPTIONS = {
    # Debian's Python is not built for it: no leaks, and its own allocator would hide faults.
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "PYTHONMALLOC": "malloc",
}


def main(arguments: list[str]) -> int:
    """Build, then test; returns pytest's exit code."""
    if not arguments or arguments[0] not in ("1", "asan"):
        print("usage: python tools/sanitize.py 1|asan [pytest arguments]", file=sys.stderr)
        return 2
    kind, *rest = arguments
    folder = ROOT / ".tools" / f"debug-{kind}"
    copy(folder)
    build(folder, kind)
    environment = os.environ | environment_for(folder, kind)
    told = subprocess.run(
        [sys.executable, "-P", "-c", PROBE], env=environment, capture_output=True, text=True,
        check=False,
    )
    if not told.stdout.startswith(str(folder)):
        print(f"the wrong one was loaded: {told.stdout}{told.stderr}", file=sys.stderr)
        return 1
    # -P: the current folder, with the package as it is in use, must not come first.
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", *(rest or TESTS)]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def copy(folder: Path) -> None:
    """Bring the copy up to date; what did not change keeps its time, and is not built again."""
    wanted = {Path("setup.py"), Path("pyproject.toml"), Path("README.md"), Path("LICENSE")}
    wanted |= {
        path.relative_to(ROOT)
        for path in (ROOT / "gateway").rglob("*")
        if path.is_file() and path.suffix in COPIED
    }
    for name in wanted:
        source, target = ROOT / name, folder / name
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    for path in (folder / "gateway").rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and path.suffix in COPIED and name not in wanted:
            path.unlink()


def build(folder: Path, kind: str) -> None:
    """Build in place there. Raises CalledProcessError."""
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=folder, env=os.environ | {"GATEWAY_DEBUG": kind}, check=True,
    )


def environment_for(folder: Path, kind: str) -> dict[str, str]:
    """What makes Python, and those whom it starts, load the copy."""
    found = {"PYTHONPATH": str(folder)}
    if kind == "asan":
        libraries = [
            subprocess.run(
                ["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
            ).stdout.strip()
            for name in ("libasan.so", "libubsan.so")
        ]
        found |= OPTIONS | {"LD_PRELOAD": " ".join(libraries)}
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
