"""What is shipped and installed: the page is sealed, the locks are exact and name no host."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from seal_page import PAGE, sealed

ROOT = Path(__file__).resolve().parents[2]
PAGE_MAX = 20 * 1024  # bytes: it is in memory, and goes out whole


def lock(name: str) -> dict[str, str]:
    """Package and version of each line."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    pinned = [line.split("==") for line in lines if not line.startswith("#")]
    return {package.replace("_", "-"): version for package, version in pinned}


def test_the_page_is_sealed() -> None:
    """Its policy has the hashes of its style and script; `make format` writes them."""
    text = PAGE.read_text()
    assert sealed(text) == text
    assert sealed(text.replace("Try", "Dry")) == text.replace("Try", "Dry")
    assert sealed(text.replace("use strict", "use less")) != text.replace("use strict", "use less")


def test_the_page_needs_nothing_from_elsewhere() -> None:
    """No address of another place, no handler that the policy would block, and it is small."""
    text = PAGE.read_text()
    assert re.findall(r"https?://", text) == []
    assert re.findall(r"\s(?:style|on[a-z]+)=", text) == []
    assert re.findall(r"<(?:img|iframe|object|base)\b", text) == []
    assert len(text.encode()) < PAGE_MAX


def test_what_runs_is_a_part_of_what_is_tested() -> None:
    """run.txt has nothing that dev.txt has not, to the version."""
    assert set(lock("run.txt").items()) <= set(lock("dev.txt").items())


def test_locks_keep_the_lower_bounds() -> None:
    """Each requirement of the package is locked, at a version that it accepts."""
    locked = lock("scan.txt") | lock("dev.txt") | lock("fuzz.txt")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    groups = [pyproject["build-system"]["requires"], project["dependencies"],
              *project["optional-dependencies"].values()]
    for text in [text for group in groups for text in group]:
        wanted = Requirement(text)
        assert locked[wanted.name.lower()] in wanted.specifier, text


def test_locks_name_no_host() -> None:
    """Where packages come from is the business of pip and npm."""
    for path in [*(ROOT / "requirements").iterdir(),
                 ROOT / "tests" / "end_to_end" / "node" / "package-lock.json"]:
        text = path.read_text()
        assert '"resolved"' not in text, path
        assert "--index" not in text and "--find-links" not in text and " @ " not in text, path
