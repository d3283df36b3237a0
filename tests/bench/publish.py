"""Puts a run into the README's section on performance, and its chart beside the docs.

Laws: only what stands between two marks is replaced; what is written follows from the run alone.
"""

from pathlib import Path

from . import chart, report
from .peers.base import ROOT

BEGIN = "<!-- made by `make bench ARGS=--publish` -->"
END = "<!-- as far as here -->"
CHART = Path("docs/performance.svg")


def publish(run: report.Run, root: Path = ROOT) -> None:
    """Raises ValueError where the README has no place for it."""
    readme = root / "README.md"
    text = readme.read_text()
    if text.count(BEGIN) != 1 or END not in text.partition(BEGIN)[2]:
        raise ValueError(f"README.md has no {BEGIN} before {END}")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    section = f"{BEGIN}\n\n{report.summary(run, CHART)}\n{END}"
    (root / CHART).write_text(chart.draw(run))
    readme.write_text(before + section + after)
