"""Debian's cloud kernel and those of its modules that kTLS needs, fetched once by apt-get.

The kernel that runs here may have no kTLS; Debian's `linux-image-cloud-amd64` has it as a module.
It is unpacked below `.tools/ktls`, never installed.
"""

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".tools" / "ktls"
PACKAGE = "linux-image-cloud-amd64"

# What the kernel itself would load by name, had it a modprobe there: the module, and the ciphers.
MODULES = (
    "tls", "gcm", "ccm", "ctr", "ghash-generic", "chacha20poly1305", "chacha_generic",
    "poly1305_generic", "aesni-intel", "ghash-clmulni-intel", "cryptd",
)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What a program printed. Raises CalledProcessError."""
    return subprocess.run(
        command, cwd=cwd, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ).stdout


def unpacked() -> Path:
    """The folder with the kernel and its modules, which newer Debian has in several packages."""
    place = PLACE / "kernel"
    if not place.is_dir():
        part = PLACE / "kernel.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        told = run("apt-cache", "depends", "--important", "--recurse", PACKAGE)
        wanted = set(re.findall(r"Depends: (linux-(?:image|binary|modules)-\d\S+)", told))
        assert wanted, f"{PACKAGE} depends on no kernel: {told}"
        run("apt-get", "-qq", "download", *sorted(wanted), cwd=part)
        for package in part.glob("*.deb"):
            run("dpkg-deb", "-x", package.name, ".", cwd=part)
            package.unlink()
        part.rename(place)
    return place


def image() -> Path:
    """The kernel to boot."""
    (found,) = unpacked().rglob("vmlinuz*")
    return found


def modules() -> list[Path]:
    """Those of MODULES that this kernel has, and what they need, in the order to load them."""
    there = {_name(path.name): path for path in unpacked().rglob("*.ko*")}
    ordered: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in there and name not in ordered:
            for needed in _needs(there[name]):
                add(needed)
            ordered[name] = there[name]

    for name in MODULES:
        add(_name(name))
    assert "tls" in ordered, "this kernel has no module tls"
    return list(ordered.values())


def _name(file: str) -> str:
    return file.split(".ko", maxsplit=1)[0].replace("-", "_")


def _needs(module: Path) -> list[str]:
    """The modules that this one names in its section .modinfo."""
    found = re.search(rb"\0depends=([^\0]*)\0", plain(module))
    return [_name(name) for name in found[1].decode().split(",") if name] if found else []


def plain(module: Path) -> bytes:
    """The module as the kernel loads it (newer Debian packs them)."""
    if module.suffix == ".xz":
        return subprocess.run(["xz", "-dc", module], check=True, stdout=subprocess.PIPE).stdout
    return module.read_bytes()
