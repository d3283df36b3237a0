"""One word for one thing, the same everywhere, and the repository speaks of the project alone.

Each pattern that must not be found has its reason.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("gateway", "docs", "routes", "deploy", "tests", "tools", "README.md", "Makefile")
MADE = {"node_modules", "__pycache__", "results"}
TEXT = {".py", ".pyx", ".pxd", ".pyi", ".md", ".toml", ".html", ".js", ".sh", ".yaml", ".yml", ""}
EXEMPT = (
    "tests/house/test_words.py",
    "tests/control/golden/",     # tables that are wrong on purpose
    "tests/fuzz/corpus/",        # bytes, most of them no text
    "tests/bench/peers/",        # other proxies, configured in their own words
)

SYNONYMS = {
    r"\bback-?ends?\b": "upstream",
    r"\bfront-?ends?\b": "client (or listener)",
    r"\bdownstreams?\b": "client",
    r"\b(white|black)-?list": "what is allowed, what is refused",
    r"\bhot[- ]restart\b": "replace",
}
UNFINISHED = {
    r"\bTODO\b": "do it, or leave it out",
    r"\bFIXME\b": "do it, or leave it out",
    r"\bXXX\b": "say what is the matter",
}
NOT_OURS = {
    r"/(work|home|root)/[a-z]": "no path of one machine",
    r"pypi\.org|pythonhosted|registry\.npmjs|deb\.debian\.org": "where packages come from is "
    "the business of pip, npm and apt-get",
    r"(?i)\bissues? #?\d+": "say the reason itself",
}


def files() -> list[str]:
    """Text files of ours, without what was made or installed."""
    names = [
        str(path.relative_to(ROOT))
        for top in OURS
        for path in ([ROOT / top] if (ROOT / top).is_file() else (ROOT / top).rglob("*"))
        if path.is_file() and path.suffix in TEXT and MADE.isdisjoint(path.parts)
    ]
    return sorted(name for name in names if not name.startswith(EXEMPT))


def found(text: str, banned: dict[str, str]) -> list[str]:
    """Each line with a banned pattern, and what to write."""
    return [
        f"line {number}: {match[0]!r}: {instead}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern, instead in banned.items()
        if (match := re.search(pattern, line))
    ]


@pytest.mark.parametrize("file", files())
def test_words(file: str) -> None:
    """No synonym of the words of the design, nothing unfinished, nothing of anybody's machine."""
    text = (ROOT / file).read_text()
    assert found(text, SYNONYMS | UNFINISHED | NOT_OURS) == []


def test_banned_words_are_seen() -> None:
    """The test of the test."""
    for line in ("the backend", "its front-end", "TODO later", "see /home/me/x", "as in issue 12"):
        assert found(line, SYNONYMS | UNFINISHED | NOT_OURS), line
    assert found("upstreams and clients; issues of certificates", SYNONYMS | NOT_OURS) == []


def test_test_files_are_named_after_what_they_test() -> None:
    """A name like test_misc.py tells nobody where to look."""
    vague = re.compile(r"test_(misc|utils?|helpers?|basic|more|new|old|bugs?|fix(es)?|tests?|\d+)$")
    for path in (ROOT / "tests").rglob("*.py"):
        assert not vague.match(path.stem), path
