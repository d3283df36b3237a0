"""The figures that this gateway is held to, and whether a run reached them.

Laws: ratios are taken round by round against the best floor and the best peer of the same run
("best": the lowest median); what a run did not measure is said, never guessed. Nothing is
asserted: a miss is a line in a table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .cases import Outcome
from .stats import Interval, interval, median, ratios

KIB = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """One figure. `found` and `limit` are in the unit that `text` names; None: not measured."""

    text: str
    limit: float
    found: Interval | None
    against: str                         # what it was measured against, or why it was not

    @property
    def word(self) -> str:
        """pass, miss, or not measured."""
        if self.found is None:
            return "not measured"
        return "pass" if self.found.middle <= self.limit else "miss"


@dataclass(frozen=True, slots=True)
class Field:
    """An outcome, and who in it is what."""

    outcome: Outcome
    floors: Sequence[str]
    peers: Sequence[str]
    gateway: str

    def best(self, names: Sequence[str], case: str, figure: str) -> str:
        """The name with the lowest median; "" if none was measured."""
        measured = [name for name in names if self.outcome.values(case, name, figure)]
        return min(
            measured,
            key=lambda name: median(self.outcome.values(case, name, figure)),
            default="",
        )

    def ratio(self, case: str, figure: str, other: str) -> Interval | None:
        """The gateway's figure over another's, in the rounds that both have."""
        mine = self.by_round(case, self.gateway, figure)
        theirs = self.by_round(case, other, figure)
        both = sorted(mine.keys() & theirs.keys())
        if not both:
            return None
        return interval(ratios([mine[n] for n in both], [theirs[n] for n in both]))

    def by_round(self, case: str, proxy: str, figure: str) -> dict[int, float]:
        """Round to value."""
        return {
            sample.round: sample.figures[figure]
            for sample in self.outcome.samples
            if sample.case == case and sample.proxy == proxy and figure in sample.figures
        }


def check(field: Field) -> list[Verdict]:
    """All figures for one form of the gateway, in the order of the table."""
    verdicts: list[Verdict] = []
    for case, size, floor_limit, peer_limit in (
        ("64", "64 B, 64 connections", 1.10, 1.00),
        ("4k", "4 KiB", 1.10, 1.00),
        ("64k", "64 KiB", 1.15, 0.70),
        ("1m", "1 MiB, 8 connections", 1.15, 0.75),
    ):
        text = f"CPU per echoed {size} message"
        floor = field.best(field.floors, case, "cpu_us")
        peer = field.best(field.peers, case, "cpu_us")
        verdicts.append(_against(field, f"{text}, of the floor", case, floor, floor_limit))
        verdicts.append(_against(field, f"{text}, of the best peer", case, peer, peer_limit))
    for case, size, limit in (
        ("tls-64", "64 B", 1.00), ("tls-4k", "4 KiB", 1.00),
        ("tls-64k", "64 KiB", 0.90), ("tls-1m", "1 MiB", 0.90),
    ):
        text = f"CPU per echoed {size} message by TLS, of the best peer"
        peer = field.best(field.peers, case, "cpu_us")
        verdicts.append(_against(field, text, case, peer, limit))
    for case, how in (("tls-shake", "TLS handshake"), ("tls-resume", "resumed TLS handshake")):
        text = f"CPU per {how}, of the best peer"
        peer = field.best(field.peers, case, "shake_cpu_us")
        verdicts.append(_against(field, text, case, peer, 1.3, "shake_cpu_us"))
    verdicts.append(_latency(field))
    verdicts.append(_among_idle(field))
    text = "CPU per 64 B message to raw TCP, of lighttpd's wstunnel"
    verdicts.append(_against(field, text, "raw-64", "lighttpd", 0.50))
    verdicts.append(_memory(field))
    text = "CPU to open and close one WebSocket, of nginx's"
    verdicts.append(_against(field, text, "open", "nginx", 1.5, "cycle_cpu_us"))
    return verdicts


def _against(
    field: Field, text: str, case: str, other: str, limit: float, figure: str = "cpu_us"
) -> Verdict:
    found = field.ratio(case, figure, other) if other else None
    return Verdict(text, limit, found, other if found else "not in this run")


def _latency(field: Field) -> Verdict:
    """The limit is the upper end of the best peer's interval, so it is in microseconds."""
    text = "p99 latency at 64 B, µs, not above the best peer's interval"
    peer = field.best(field.peers, "64", "p99_us")
    mine = field.outcome.values("64", field.gateway, "p99_us")
    if not peer or not mine:
        return Verdict(text, 0.0, None, "not in this run")
    theirs = interval(field.outcome.values("64", peer, "p99_us"))
    return Verdict(text, theirs.high, interval(mine), peer)


def _among_idle(field: Field) -> Verdict:
    text = "64 B, 64 busy connections among the idle ones, of 64 alone"
    found = _of(
        lambda: interval(
            ratios(
                field.outcome.values("idle", field.gateway, "cpu_us"),
                field.outcome.values("idle", field.gateway, "alone_cpu_us"),
            )
        )
    )
    return Verdict(text, 1.10, found, "itself" if found else "not in this run")


def _memory(field: Field) -> Verdict:
    text = "user memory per idle WebSocket, KiB"
    values = [v / KIB for v in field.outcome.values("idle", field.gateway, "idle_bytes")]
    found = _of(lambda: interval(values))
    return Verdict(text, 2.5, found, "itself" if found else "not in this run")


def _of(take: Callable[[], Interval]) -> Interval | None:
    try:
        return take()
    except ValueError:
        return None
