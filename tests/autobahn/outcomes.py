"""Compares how cases end directly and through the gateway. Pure: results in, a verdict out.

A case is *spoiled* when it passes directly and fails through the gateway. It *differs* when it
ends otherwise (in Autobahn's verdict on the behaviour, on the closing handshake, or in the close
code that the fuzzer got); then `differences.toml` must list it with that end and a reason.
"""

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WAYS = ("client", "server")
LISTED = Path(__file__).resolve().parent / "differences.toml"
NAMES_SHOWN = 60


@dataclass(frozen=True)
class Outcome:
    """How a case ended: Autobahn's two verdicts, and the close code that its fuzzer received."""

    behavior: str
    close: str
    code: int | None

    @property
    def passed(self) -> bool:
        """Autobahn's own notion: `FAILED BY CLIENT` is a client that dropped first."""
        return self.behavior in ("OK", "NON-STRICT", "INFORMATIONAL") and self.close in (
            "OK",
            "INFORMATIONAL",
            "FAILED BY CLIENT",
        )

    def __str__(self) -> str:
        return f"{self.behavior}/{self.close}/{self.code}"


MISSING = Outcome("MISSING", "MISSING", None)
Outcomes = Mapping[str, Outcome]


def read(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Outcome]:
    """The outcomes in what the fuzzer wrote."""
    return {
        name: Outcome(result["behavior"], result["behaviorClose"], result["remoteCloseCode"])
        for name, result in results.items()
    }


@dataclass(frozen=True)
class Difference:
    """One entry of `differences.toml`.

    ends: the outcomes through the gateway that the reason explains, as `str(Outcome)`.
    sometimes: a race decides, so that the case may end as it does directly.
    """

    ways: tuple[str, ...]
    cases: tuple[str, ...]
    ends: tuple[str, ...]
    reason: str
    sometimes: bool = False


def load(path: Path = LISTED) -> list[Difference]:
    """Read the list. Raises ValueError where an entry is not whole, or lists a case twice."""
    with path.open("rb") as file:
        entries = tomllib.load(file).get("difference", [])
    listed = [
        Difference(
            tuple(entry["ways"]),
            tuple(entry["cases"]),
            tuple(entry["ends"]),
            entry["reason"],
            entry.get("sometimes", False),
        )
        for entry in entries
    ]
    seen = Counter((way, case) for item in listed for way in item.ways for case in item.cases)
    doubled = [f"{way} {case}" for (way, case), times in seen.items() if times > 1]
    if doubled:
        raise ValueError(f"{path.name}: listed twice: {', '.join(doubled)}")
    for item in listed:
        if not (item.ways and item.cases and item.ends and item.reason.strip()):
            raise ValueError(f"{path.name}: an entry without ways, cases, ends or reason: {item}")
        if not set(item.ways) <= set(WAYS):
            raise ValueError(f"{path.name}: ways are {WAYS}, found {item.ways}")
    return listed


@dataclass
class Verdict:
    """What a comparison found; `ok` is what counts. Names of cases, with their outcomes."""

    way: str
    through: str = "the gateway"
    count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    spoiled: dict[str, str] = field(default_factory=dict)
    unlisted: dict[str, str] = field(default_factory=dict)
    listed: dict[str, str] = field(default_factory=dict)
    stale: dict[str, str] = field(default_factory=dict)        # listed, but ends as directly
    failed_directly: dict[str, str] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)             # in order only when run again, alone

    @property
    def ok(self) -> bool:
        """Something ran, nothing is spoiled, and nothing differs without a reason."""
        return bool(self.count) and not self.spoiled and not self.unlisted

    def lines(self) -> list[str]:
        """The report: one line, and one for each thing that needs to be seen."""
        passed = sum(self.kinds.values())
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(self.kinds.items()))
        head = (
            f"autobahn, way {self.way}: {self.count} cases, {passed} pass through "
            f"{self.through} ({kinds}), {len(self.spoiled)} spoiled, "
            f"{len(self.unlisted)} differ unlisted, {len(self.listed)} differ as listed"
        )
        text = [head]
        for what, found in (
            ("SPOILED (passes directly)", self.spoiled),
            ("DIFFERS and is not in differences.toml", self.unlisted),
            ("listed in differences.toml, but ends as directly", self.stale),
            ("fails directly too", self.failed_directly),
        ):
            if found:
                shown = [f"{name} {end}" for name, end in list(found.items())[:NAMES_SHOWN]]
                more = " ..." if len(found) > NAMES_SHOWN else ""
                text.append(f"  {what}: {'; '.join(shown)}{more}")
        if self.again:
            text.append(f"  in order only when run again, alone: {', '.join(self.again)}")
        return text


def judge(way: str, direct: Outcomes, proxied: Outcomes, listed: Iterable[Difference]) -> Verdict:
    """Compare the two runs of one way."""
    reasons = {case: item for item in listed if way in item.ways for case in item.cases}
    verdict = Verdict(way, count=len(direct))
    for name in sorted(direct, key=lambda name: [int(part) for part in name.split(".")]):
        before, after = direct[name], proxied.get(name, MISSING)
        reason = reasons.get(name)
        change = f"{before} -> {after}"
        if after.passed:
            verdict.kinds[after.behavior] += 1
        if not before.passed:
            verdict.failed_directly[name] = change
        if before.passed and not after.passed:
            verdict.spoiled[name] = change
        elif before != after:
            known = reason is not None and str(after) in reason.ends
            (verdict.listed if known else verdict.unlisted)[name] = change
        elif reason is not None and not reason.sometimes:
            verdict.stale[name] = str(after)
    return verdict
