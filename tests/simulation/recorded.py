"""Recorded scripts: what each relay of some lives was told, in order, to be told to another.

    scripts = record(range(100))
    differences = compare(scripts, [Relay, CompiledRelay])
    dump(scripts, path);  scripts = load(path)

A script has the rules of a relay and its facts. Masks and pings are predictable in it (the bytes
1, 2, 3 ...), so that answers to the gateway's own pings are answers on any relay. After each fact
all that a driver looks at is compared. In a file each script is one line of JSON, bytes in hex.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gateway.errors import Fault
from gateway.events import Cause, RelayRules, Side
from gateway.relaying import Relay
from simulation.watch import Fact
from simulation.world import Cast, World

FAULTS = {fault.value for fault in Fault}
RelayMaker = Callable[[RelayRules, float, Callable[[int], bytes]], Relay]


@dataclass(frozen=True, slots=True)
class Script:
    """What one relay was told."""

    seed: int
    rules: RelayRules
    began: float
    facts: tuple[Fact, ...]


def counting(count: int) -> bytes:
    """Predictable bytes, as the compiled rules draw them in tests."""
    return bytes(range(1, count + 1))


def _predictable(rules: RelayRules, now: float, _: Callable[[int], bytes]) -> Relay:
    return Relay(rules, now, counting)


def record(seeds: Iterable[int]) -> list[Script]:
    """The scripts of all relays of these lives."""
    scripts = []
    for seed in seeds:
        world = World(seed, Cast(relay=_predictable))
        world.run()
        scripts += [
            Script(seed, trace.rules, trace.began, tuple(map(_plain, trace.facts)))
            for trace in world.engine.traces if trace.is_made
        ]
    return scripts


def _plain(fact: Fact) -> Fact:
    """A loss in the words of `Fault`: compiled drivers have no others."""
    verb, *arguments = fact
    if verb == "lost" and arguments[1] not in FAULTS:
        arguments[1] = Fault.RESET.value
    return (verb, *arguments)


def replay(script: Script, make: RelayMaker) -> list[tuple[Any, ...]]:
    """Tell it to a relay; what a driver would see after each fact."""
    relay = make(script.rules, script.began, counting)
    seen: list[tuple[Any, ...]] = []
    for verb, *arguments in script.facts:
        getattr(relay, verb)(*arguments)
        legs = tuple(
            (b"".join(leg.queue), leg.queued, leg.reading, leg.fate) for leg in relay.legs
        )
        seen.append((legs, relay.over, relay.cause, relay.side, relay.detail, relay.deadline))
    seen.append(relay.counts())
    return seen


def compare(scripts: Sequence[Script], makers: Sequence[RelayMaker]) -> list[str]:
    """What one relay did otherwise than the first; a sentence for each script that differs."""
    differences = []
    for script in scripts:
        first, *others = (replay(script, make) for make in makers)
        for maker, other in zip(makers[1:], others, strict=True):
            at = next((at for at, (a, b) in enumerate(zip(first, other, strict=True)) if a != b),
                      None)
            if at is not None:
                told = script.facts[at] if at < len(script.facts) else "counts"
                differences.append(
                    f"seed {script.seed}, after fact {at}, {told}: {first[at]} and, by "
                    f"{getattr(maker, '__name__', maker)}, {other[at]}"
                )
    return differences


# --- Files --------------------------------------------------------------------------------------


def dump(scripts: Iterable[Script], path: Path) -> None:
    """Write them to a file."""
    with path.open("w", encoding="ascii") as file:
        for script in scripts:
            facts = [[_shown(part) for part in fact] for fact in script.facts]
            line = {"seed": script.seed, "rules": asdict(script.rules), "began": script.began,
                    "facts": facts}
            file.write(json.dumps(line) + "\n")


def load(path: Path) -> list[Script]:
    """Read a file that `dump` wrote."""
    scripts = []
    with path.open(encoding="ascii") as file:
        for line in map(json.loads, file):
            facts = tuple(_fact(parts) for parts in line["facts"])
            rules = RelayRules(**line["rules"])
            scripts.append(Script(line["seed"], rules, line["began"], facts))
    return scripts


def _shown(part: Any) -> Any:
    if isinstance(part, bytes):
        return part.hex()
    if isinstance(part, Side | Cause):
        return part.value
    return part


def _fact(parts: list[Any]) -> Fact:
    verb, *arguments = parts
    if verb in ("received", "finished", "lost", "sent", "acknowledged"):
        arguments[0] = Side(arguments[0])
    if verb == "received":
        arguments[1] = bytes.fromhex(arguments[1])
    if verb == "end":
        arguments[0] = Cause(arguments[0])
    return (verb, *arguments)
