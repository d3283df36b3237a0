"""The compiled parts. Each is optional: what cannot be built is left out, and said at start.

Everything else about the package is in pyproject.toml.
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("GATEWAY_DEBUG", "")          # "1": checks; "asan": with sanitizers too
FLAGS = ["-O3", "-fno-strict-aliasing", "-Wno-unused-function", "-Wno-sign-compare"]
LINK: list[str] = []
if DEBUG:
    FLAGS = ["-O1", "-g", "-fno-strict-aliasing", "-fno-omit-frame-pointer"]
if DEBUG == "asan":
    FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    LINK += ["-fsanitize=address,undefined"]


def part(name: str) -> Extension:
    """One extension module of `gateway.engine`."""
    return Extension(
        f"gateway.engine.{name}",
        [f"gateway/engine/{name}.pyx"],
        extra_compile_args=FLAGS,
        extra_link_args=LINK,
        optional=True,
    )


setup(ext_modules=cythonize([part("relay"), part("compiled"), part("epoll_relays")], quiet=True))
