"""Write requirements/*.txt: every package that the project needs, with its exact version.

    .venv/bin/python tools/lock.py     (or: make lock)

pip resolves the lower bounds of pyproject.toml to today's newest versions, on the Python that
runs this; use the oldest one that is supported, since newer ones need no more packages. What is
needed to run and build comes from the same resolution as what is needed to develop, so that
run.txt is a part of dev.txt. The scanner of TLS is resolved by itself, as it has an environment.

Never: a host's name or a path in these files; where packages come from is pip's configuration.
"""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Written by `make lock` from pyproject.toml; not by hand.\n"


def main() -> None:
    """Resolve dev first, then run within it; fuzz.txt has only what is not in there, scan.txt
    goes by itself."""
    os.chdir(ROOT)
    pyproject = tomllib.loads(Path("pyproject.toml").read_text())
    build = pyproject["build-system"]["requires"]
    dev = Path("requirements/dev.txt")
    dev.write_text(HEADER + resolve(".[dev]", *build))
    run = resolve(".", *build, "--constraint", str(dev))
    Path("requirements/run.txt").write_text(HEADER + run)
    locked = dev.read_text().splitlines()
    fuzz = resolve(".[fuzz]", "--only-binary", ":all:", "--constraint", str(dev)).splitlines()
    only = [line for line in fuzz if line not in locked]
    Path("requirements/fuzz.txt").write_text(HEADER + "".join(f"{line}\n" for line in only))
    scanner = resolve(*pyproject["project"]["optional-dependencies"]["scan"])
    Path("requirements/scan.txt").write_text(HEADER + scanner)


def resolve(*wanted: str) -> str:
    """Lines `name==version` for all that these requirements need, in the order of the names."""
    report = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "install", "--dry-run", "--ignore-installed",
         "--report", "-", *wanted],
        check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    ).stdout
    found = [item["metadata"] for item in json.loads(report)["install"]]
    own = tomllib.loads(Path("pyproject.toml").read_text())["project"]["name"]
    lines = {f"{item['name'].lower()}=={item['version']}\n" for item in found
             if item["name"] != own}
    return "".join(sorted(lines))


if __name__ == "__main__":
    main()
