"""The compiled parts. Each is optional: what cannot be built is left out, and said at start.

Everything else about the package is in pyproject.toml.
"""

import os
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

DEBUG = os.environ.get("GATEWAY_DEBUG", "")          # "1": checks; "asan": with sanitizers too
FLAGS = ["-O3", "-fno-strict-aliasing", "-Wno-unused-function", "-Wno-sign-compare"]
LINK: list[str] = []
if DEBUG:
    FLAGS = ["-O1", "-g", "-DGATEWAY_DEBUG=1", "-fno-omit-frame-pointer", *FLAGS[1:]]
if DEBUG == "asan":
    FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    LINK += ["-fsanitize=address,undefined"]


def part(
    name: str, archives: list[str] | None = None, libraries: list[str] | None = None
) -> Extension:
    """One extension module of `gateway.engine`, with these archives and libraries linked in."""
    return Extension(
        f"gateway.engine.{name}",
        [f"gateway/engine/{name}.pyx"],
        extra_compile_args=FLAGS,
        extra_link_args=LINK,
        extra_objects=archives,
        libraries=libraries,
    )


def liburing() -> str:
    """The static library (Debian: liburing-dev), where it and its headers are; "" if not.

    Static, so that the wheel needs no liburing where it runs.
    """
    folders = [f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}", "/usr/lib64", "/usr/lib"]
    for root, found in (("/usr/local", ["/usr/local/lib"]), ("/usr", folders)):
        if Path(root, "include/liburing.h").is_file():
            for folder in found:
                archive = Path(folder, "liburing.a")
                if archive.is_file():
                    return str(archive)
    return ""


def has_openssl() -> bool:
    """Whether the headers of OpenSSL 3 are here (Debian: libssl-dev).

    Linked as a shared library, so that the system's updates of it count. They are one library for
    this part and for Python's own `ssl`, wherever that is the system's too.
    """
    return any(
        Path(root, "include", "openssl", "ssl.h").is_file() for root in ("/usr/local", "/usr")
    )


class BuildWhatCanBe(build_ext):
    """Leaves an optional part out also where there is no compiler at all.

    setuptools itself forgives a compiler that fails, but not one that cannot be started.
    """

    def build_extension(self, ext: Extension) -> None:
        """Build one part. Raises CompileError, which is forgiven for an optional one."""
        try:
            super().build_extension(ext)
        except OSError as error:
            raise CompileError(str(error)) from error


NAMES = (
    "ledger", "relay", "relay_report", "compiled", "pipes", "secure_leg",
    "relay_slots", "relay_carriage", "relay_sealed", "relay_kernel", "relay_loop",
    "epoll_relays",
)

WANTED = [part(name) for name in NAMES]
if LIBURING := liburing():
    WANTED += [part(name, [LIBURING]) for name in ("uring_ring", "uring_buffers")]
    WANTED += [part(name) for name in ("ring_relays", "ring_completions")]
if has_openssl():
    WANTED += [part(name, None, ["ssl", "crypto"]) for name in ("openssl_context", "openssl")]

PARTS = cythonize(WANTED, quiet=True)
for one in PARTS:
    one.optional = True  # only now: cythonize makes new ones, and would forget it

setup(cmdclass={"build_ext": BuildWhatCanBe}, ext_modules=PARTS)
