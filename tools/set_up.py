"""Create what `make` needs: the virtual environment, npm packages, Debian packages.

    python3 tools/set_up.py run     to run the gateway: .venv with requirements/run.txt
    python3 tools/set_up.py test    to test it, too: requirements/dev.txt, npm, Debian packages

Laws of this file:

- The standard library only: it runs before anything is installed, on Python 3.11 and newer.
- Repeating it is cheap and harmless. What is current is told by a stamp, a digest of all that
  went in; two runs at once wait for each other.
- Every path is relative to the repository's root, which may have a space in its name.
- Root installs what Debian has and this machine lacks. Anybody else is told, in one line, what to
  install and what is skipped without it.

Never: remove or change anything outside the repository but by apt-get install.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(".venv")
PYTHON = VENV / "bin" / "python"
NODE = Path("tests/end_to_end/node")
OLDEST = (3, 11)
REQUIREMENTS = {"run": Path("requirements/run.txt"), "test": Path("requirements/dev.txt")}


@dataclass(frozen=True)
class Program:
    """A program that only the tests need, and the Debian package that has it."""

    command: str
    package: str
    skipped: str  # what `make test` cannot show without it


# The one list of Debian packages. A command that is there is never installed again, wherever it
# came from: the packages of node's own distribution conflict with Debian's npm.
PROGRAMS = (
    Program("node", "nodejs", "clients from npm"),
    Program("npm", "npm", "clients from npm"),
    Program("chromium", "chromium", "the demo page in a browser"),
)


def main(arguments: list[str]) -> int:
    """Do what the level says; returns the exit code: 0, 1 if something failed, 2 for usage."""
    if len(arguments) != 1 or arguments[0] not in REQUIREMENTS:
        print("usage: python3 tools/set_up.py run|test", file=sys.stderr)
        return 2
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        print(f"Python {found} is too old: 3.11 or newer is needed (make PYTHON=python3.12 ...)",
              file=sys.stderr)
        return 1
    os.chdir(ROOT)
    Path(".tools").mkdir(exist_ok=True)
    level = arguments[0]
    with Path(".tools/set-up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if level == "test":
                install_programs()
            install_python_packages(level)
            if level == "test" and shutil.which("npm"):
                install_npm_packages()
        except subprocess.CalledProcessError as error:
            command = " ".join(map(str, error.cmd))
            print(f"set-up failed: `{command}` ended with {error.returncode}", file=sys.stderr)
            return 1
    return 0


def run(*command: str | Path, cwd: Path | None = None, quiet: bool = False) -> None:
    """Run a program to its end, with no standard input. Raises CalledProcessError."""
    output = subprocess.DEVNULL if quiet else None
    subprocess.run(command, cwd=cwd, check=True, stdin=subprocess.DEVNULL,
                   stdout=output, stderr=output)


def digest(*files: Path) -> str:
    """What a stamp holds: all files' contents, this Python, and where the repository is."""
    state = hashlib.sha256(f"{sys.version}\0{ROOT}\0".encode())
    for file in files:
        state.update(file.read_bytes() + b"\0")
    return state.hexdigest()


def is_current(stamp: Path, wanted: str) -> bool:
    """True if this stamp was written by a whole run with the same inputs."""
    return stamp.exists() and stamp.read_text() == wanted


# --- Python -------------------------------------------------------------------------------------


def install_python_packages(level: str) -> None:
    """Make .venv hold the locked packages of this level, and the gateway itself, in place."""
    wanted = {
        name: digest(Path("pyproject.toml"), Path("gateway/__init__.py"), requirements)
        for name, requirements in REQUIREMENTS.items()
    }
    stamps = {name: VENV / f"stamp-{name}" for name in REQUIREMENTS}
    enough = ("test",) if level == "test" else ("run", "test")  # dev.txt holds all of run.txt
    if works() and any(is_current(stamps[name], wanted[name]) for name in enough):
        return
    if not works():
        create_venv()
    for stamp in stamps.values():
        stamp.unlink(missing_ok=True)
    print(f"Installing the Python packages of {REQUIREMENTS[level]} into .venv", flush=True)
    pip = (PYTHON, "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
    run(*pip, "-r", REQUIREMENTS[level])
    run(*pip, "--no-deps", "--no-build-isolation", "--editable", ".")
    stamps[level].write_text(wanted[level])


def works() -> bool:
    """True if .venv has a Python of this version with pip; a half-made one has not."""
    version = f"import pip, sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    try:
        run(PYTHON, "-c", version, quiet=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def create_venv() -> None:
    """Make .venv anew. Raises SystemExit with one line where Debian's python3-venv is missing."""
    try:
        import ensurepip  # noqa: F401, PLC0415 - asked for here, since Debian splits it off
    except ImportError:
        sys.exit("python3-venv is missing (apt-get install python3-venv)")
    print("Creating .venv", flush=True)
    run(sys.executable, "-m", "venv", "--clear", VENV)


# --- npm ----------------------------------------------------------------------------------------


def install_npm_packages() -> None:
    """Make tests/end_to_end/node hold what its lock file says."""
    stamp = NODE / "node_modules" / "stamp"
    wanted = digest(NODE / "package.json", NODE / "package-lock.json")
    if is_current(stamp, wanted):
        return
    print(f"Installing the npm packages of {NODE}/package-lock.json", flush=True)
    run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", cwd=NODE)
    stamp.write_text(wanted)


# --- Debian -------------------------------------------------------------------------------------


def install_programs() -> None:
    """Install the programs that are missing, or name them where this user may not."""
    missing = [program for program in PROGRAMS if not shutil.which(program.command)]
    if not missing:
        return
    packages = list(dict.fromkeys(program.package for program in missing))
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        skipped = ", ".join(dict.fromkeys(program.skipped for program in missing))
        print(f"Not installed: {' '.join(packages)} (as root: apt-get install "
              f"{' '.join(packages)}); tests are skipped: {skipped}", flush=True)
        return
    print(f"Installing Debian packages: {' '.join(packages)}", flush=True)
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    apt = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300")
    install = (*apt, "install", "--yes", "--no-install-recommends", *packages)
    try:
        run(*install, quiet=True)
    except subprocess.CalledProcessError:  # the lists are absent or old: fetch them, try again
        run(*apt, "update")
        run(*install)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
