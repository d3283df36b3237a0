"""A run as an SVG: for each case a panel of bars, CPU per echoed message with its interval.

Law: pure, no dependency, and one chart reads on a light and on a dark page.
"""

from html import escape

from .cases import CASES, ECHO, Case
from .report import Run, number
from .stats import Interval, interval

WIDTH, LABEL, VALUE = 860, 150, 150      # of the whole, for the names, for the numbers
BAR, GAP, TITLE, MARGIN = 16, 6, 30, 16
COLOURS = {"floor": "#8a8f98", "gateway": "#d9480f", "peer": "#3b7dd8"}
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}"
    ".title{font-weight:600;font-size:13px}.end{text-anchor:end}"
    ".whisker{stroke:#24292f;stroke-width:1}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.whisker{stroke:#e6edf3}}"
)


def draw(run: Run) -> str:
    """The whole picture; an empty one where no echo was measured."""
    panels, top = [], MARGIN
    for case in CASES:
        bars = _bars(run, case) if case.kind == ECHO else []
        if bars:
            panels.append(_panel(case, bars, top))
            top += TITLE + len(bars) * (BAR + GAP) + MARGIN
    body = "\n".join(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" '
        f'width="{WIDTH}" height="{top}" role="img">\n'
        f"<title>CPU of the proxy for one echoed message</title>\n"
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


def _bars(run: Run, case: Case) -> list[tuple[str, str, Interval]]:
    """Name, kind and figure, the lowest first."""
    bars = []
    for name, about in run.proxies.items():
        values = run.outcome.values(case.name, name, "cpu_us")
        if values:
            bars.append((name, about[0], interval(values)))
    return sorted(bars, key=lambda bar: bar[2].middle)


def _panel(case: Case, bars: list[tuple[str, str, Interval]], top: int) -> str:
    room = WIDTH - LABEL - VALUE - 2 * MARGIN
    scale = room / max(found.high for _, _, found in bars)
    title = f"{case.title}: CPU of the proxy per echoed message, µs"
    lines = [f'<text class="title" x="{MARGIN}" y="{top + 14}">{escape(title)}</text>']
    left = MARGIN + LABEL
    for place, (name, kind, found) in enumerate(bars):
        y = top + TITLE + place * (BAR + GAP)
        middle = y + BAR / 2
        low, high = left + found.low * scale, left + found.high * scale
        width = found.middle * scale
        ends = f"M{low:.1f} {middle - 3}v6M{high:.1f} {middle - 3}v6"
        colour = COLOURS[kind]
        lines += [
            f'<text class="end" x="{left - 8}" y="{y + 12}">{escape(name)}</text>',
            f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}{ends}"/>',
            f'<text x="{high + 8:.1f}" y="{y + 12}">{number(found.middle)}</text>',
        ]
    return "\n".join(lines)
