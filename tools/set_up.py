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
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(".venv")
PYTHON = VENV / "bin" / "python"
NODE = Path("tests/end_to_end/node")
OLDEST = (3, 11)
PYTHON_H = f"{sysconfig.get_path('include')}/Python.h"  # of the Python that runs this
LIBURING_H = "/usr/include/liburing.h"
OPENSSL_H = "/usr/include/openssl/ssl.h"
SOURCES = ("pyproject.toml", "setup.py", "gateway/__init__.py", "gateway/engine/*.p[yx][xd]")
FUZZER = Path("requirements/fuzz.txt")
SCANNER = Path("requirements/scan.txt")
SCANNER_HOME = Path(".tools/sslyze")
REQUIREMENTS = {"run": Path("requirements/run.txt"), "test": Path("requirements/dev.txt")}


@dataclass(frozen=True)
class Need:
    """A program or header that only the tests need, and the Debian package that has it."""

    probe: str    # a command, or the full name of a file
    package: str
    skipped: str  # what `make test` cannot show without it

    def is_there(self) -> bool:
        """True if this machine has it, wherever it came from."""
        if self.probe.startswith("/"):
            return Path(self.probe).exists()
        return shutil.which(self.probe, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is not None


# The one list of Debian packages. What is there is never installed again, wherever it came from:
# the packages of node's own distribution conflict with Debian's npm.
NEEDS = (
    Need("node", "nodejs", "clients from npm"),
    Need("npm", "npm", "clients from npm"),
    Need("chromium", "chromium", "the demo page in a browser"),
    Need("certutil", "libnss3-tools", "the demo page by https"),
    Need("mosquitto", "mosquitto", "MQTT over WebSocket"),
    Need("cc", "gcc", "whatever is compiled"),
    Need("/usr/include/stdio.h", "libc6-dev", "whatever is compiled"),
    Need(PYTHON_H, "python3-dev", "whatever is compiled"),
    Need(LIBURING_H, "liburing-dev", "the engine on io_uring"),
    Need(OPENSSL_H, "libssl-dev", "relays with TLS that are compiled"),
    Need("debootstrap", "debootstrap", "the wheel in a clean root"),
    Need("qemu-system-x86_64", "qemu-system-x86", "TLS in the kernel"),
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
                install_debian_packages()
            install_python_packages(level)
            if level == "test":
                install_fuzzer()
                install_scanner()
                install_npm_packages()
                install_autobahn()
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
    """What a stamp holds: all files' contents, this Python, and where the repository is.

    And what there is to compile with: once there is more, what was left out can be built.
    """
    compiler = [
        shutil.which("cc"),
        *(Path(header).exists() for header in (PYTHON_H, LIBURING_H, OPENSSL_H)),
    ]
    state = hashlib.sha256(f"{sys.version}\0{ROOT}\0{compiler}\0".encode())
    for file in files:
        state.update(file.read_bytes() + b"\0")
    return state.hexdigest()


def is_current(stamp: Path, wanted: str) -> bool:
    """True if this stamp was written by a whole run with the same inputs."""
    return stamp.exists() and stamp.read_text() == wanted


# --- Python -------------------------------------------------------------------------------------


def install_python_packages(level: str) -> None:
    """Make .venv hold the locked packages of this level, and the gateway itself, in place."""
    sources = sorted(path for pattern in SOURCES for path in Path().glob(pattern))
    wanted = {
        name: digest(*sources, requirements) for name, requirements in REQUIREMENTS.items()
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


def install_fuzzer() -> None:
    """Install atheris where it has a wheel; to build it takes a compiler of its own."""
    stamp = VENV / "stamp-fuzz"
    wanted = digest(FUZZER)
    if is_current(stamp, wanted):
        return
    try:
        run(PYTHON, "-m", "pip", "--disable-pip-version-check", "--quiet", "install",
            "--only-binary", ":all:", "-r", FUZZER, quiet=True)
    except subprocess.CalledProcessError:
        print("Not installed: atheris, which has no wheel for this Python; the coverage-guided "
              "fuzzer does not run", flush=True)
    stamp.write_text(wanted)


def install_scanner() -> None:
    """Install sslyze, apart from everything else: what it needs is older than what we need."""
    stamp, python = SCANNER_HOME / "ready", SCANNER_HOME / "venv" / "bin" / "python"
    wanted = digest(SCANNER)
    if is_current(stamp, wanted):
        return
    print(f"Installing {SCANNER} into {SCANNER_HOME}", flush=True)
    run(sys.executable, "-m", "venv", "--clear", SCANNER_HOME / "venv")
    run(python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "-r", SCANNER)
    stamp.write_text(wanted)


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
    if is_current(stamp, wanted) or not shutil.which("npm"):
        return
    print(f"Installing the npm packages of {NODE}/package-lock.json", flush=True)
    run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", cwd=NODE)
    stamp.write_text(wanted)


# --- Autobahn -----------------------------------------------------------------------------------


def install_autobahn() -> None:
    """Fetch and translate the Autobahn suite, by its own script, which has a stamp of its own."""
    if not Path(".tools/autobahn/ready").exists():
        print("Preparing the Autobahn suite in .tools/autobahn", flush=True)
    run(PYTHON, "-c", "from tests.autobahn.install import install; install()")


# --- Debian -------------------------------------------------------------------------------------


def install_debian_packages() -> None:
    """Install what is missing, or name it where this user may not."""
    missing = [need for need in NEEDS if not need.is_there()]
    if not missing:
        return
    packages = list(dict.fromkeys(need.package for need in missing))
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        skipped = ", ".join(dict.fromkeys(need.skipped for need in missing))
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
