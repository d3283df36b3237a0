"""Fetch and translate Autobahn's test suite into `.tools/autobahn` of the repository.

`python -m tests.autobahn.install` does nothing where it is done already. The suite, 25.10.1, is
Python 2 code: its source package is downloaded, and `suite/port.py` translates it. Everything
lands in one virtual environment, so that none of it meets the gateway's own.

- Idempotent, and safe when two start it at once: a lock file, and a stamp of all that it depends
  on, written last.
- Never calls a script of the environment: their first lines cannot name a path with a space.
"""

import fcntl
import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = HERE.parents[1] / ".tools" / "autobahn"
PYTHON = HOME / "venv" / "bin" / "python"
SUITE = "autobahntestsuite==25.10.1"
AUTOBAHN = "autobahn==0.10.9"      # pinned by the suite; a later one has no Python 2 heritage
LOG_LINES_SHOWN = 20


class InstallFailed(Exception):
    """A step of the set-up failed; the message has the end of its log."""


def _stamp() -> str:
    """Changes when anything does that the environment is made from."""
    digest = hashlib.sha256(sys.version.encode())
    for path in (Path(__file__), HERE / "suite" / "port.py", HERE / "suite" / "requirements.txt"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _run(log: Path, *command: str | Path) -> None:
    """Run one step; its output goes to the log. Raises InstallFailed."""
    with log.open("a", encoding="utf-8") as out:
        out.write(f"$ {' '.join(map(str, command))}\n")
        out.flush()
        code = subprocess.run(command, stdout=out, stderr=out, check=False).returncode
    if code:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-LOG_LINES_SHOWN:])
        raise InstallFailed(f"set-up of the Autobahn suite failed, see {log}:\n{tail}")


def _build(log: Path) -> None:
    """All the steps, into an empty folder."""
    pip = (PYTHON, "-m", "pip", "--disable-pip-version-check", "-q")
    _run(log, sys.executable, "-m", "venv", "--clear", HOME / "venv")
    _run(log, *pip, "install", "wheel", "setuptools<81")
    _run(log, *pip, "install", "-r", HERE / "suite" / "requirements.txt")
    _run(log, *pip, "install", "--no-deps", "--no-build-isolation", AUTOBAHN)
    if sys.version_info >= (3, 13):     # which has no lib2to3 any more
        _run(log, *pip, "install", "fissix")
    source = HOME / "source"
    source.mkdir(exist_ok=True)
    _run(log, *pip, "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation",
         "-d", source, SUITE)
    archive = next(source.glob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(source, filter="data")
    package = source / archive.name.removesuffix(".tar.gz")
    _run(log, PYTHON, "-W", "ignore", HERE / "suite" / "port.py", package)
    _run(log, PYTHON, "-W", "ignore", "-c", "import autobahntestsuite.fuzzing")


def install() -> Path:
    """Make the environment if it is not there; its Python. Raises InstallFailed."""
    HOME.mkdir(parents=True, exist_ok=True)
    ready = HOME / "ready"
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists() or ready.read_text() != _stamp():
            ready.unlink(missing_ok=True)
            log = HOME / "install.log"
            log.unlink(missing_ok=True)
            _build(log)
            ready.write_text(_stamp())
    return PYTHON


if __name__ == "__main__":
    try:
        print(install())
    except InstallFailed as failure:
        sys.exit(str(failure))
