"""The package as somebody installs it: from a folder with a space, and without any compiler.

`pip install .` alone must give a working `gateway`; what is compiled only makes it faster.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ["pyproject.toml", "setup.py", "README.md", "LICENSE"]

RUN = """
import sys, gateway, gateway.control.cli
assert gateway.__file__.startswith(sys.argv.pop(1)), gateway.__file__
gateway.control.cli.main()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds from the sources alone, where no compiler can be started."""
    source = tmp_path_factory.mktemp("a folder") / "source"
    made = shutil.ignore_patterns("*.so", "*.c", "__pycache__")
    shutil.copytree(ROOT / "gateway", source / "gateway", ignore=made)
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps",
         "--no-build-isolation", "--wheel-dir", "dist", "."],
        cwd=source, env={**os.environ, "CC": "/nowhere/cc"}, capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_the_wheel_has_all_that_runs(wheel: Path) -> None:
    """Every module that is Python, the page, the mark of types; no test, nothing compiled."""
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "gateway").rglob("*.py")}
    assert modules | {"gateway/protocol/page.html", "gateway/py.typed"} <= names
    assert not any(name.startswith(("tests", "tools")) or name.endswith(".so") for name in names)
    (entry,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "gateway = gateway.control.cli:main" in zipfile.ZipFile(wheel).read(entry).decode()


def test_the_wheel_works(wheel: Path, tmp_path: Path) -> None:
    """Unpacked somewhere else, it checks the demo's table."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUN, str(tmp_path), "check", str(ROOT / "routes/demo.toml")],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 'upstream = "builtin:echo"' in done.stdout
