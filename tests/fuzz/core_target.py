"""The target for the relay's core in C: one script of facts, told to it and to the reference.

The script is that of `relay_target.py`. After each fact both must be in the same state, to the
byte: what is queued for whom, who is read, what becomes of each side, the counters, the deadline,
the cause and its sentence. Where nothing is compiled there is nothing to compare.
"""

import importlib
from typing import Any

from gateway.events import Side
from gateway.relaying import Relay

from .relay_target import MakeRelay, Script

try:
    _CORE: MakeRelay | None = importlib.import_module("gateway.engine.compiled").CompiledRelay
    _RULES: Any = importlib.import_module("gateway.engine.relay")
except ImportError:
    _CORE = None

State = dict[str, object]


class _Traced(Script):
    """Keeps the state after each fact; masks and pings are those of the predictable core."""

    def __init__(self, data: bytes, make_relay: MakeRelay) -> None:
        self.trace: list[State] = []
        super().__init__(data, make_relay)

    def _random_bytes(self, count: int) -> bytes:
        return bytes(range(1, count + 1))

    def _look(self) -> None:
        super()._look()
        relay = self.relay
        state: State = {
            "deadline": relay.deadline,
            "end": (relay.over, relay.cause, relay.side, relay.detail),
            "counts": [
                (leg.bytes_in, leg.bytes_out, leg.frames, leg.messages, leg.payload,
                 leg.close_received, leg.close_sent, leg.pings_sent, leg.round_trip)
                for leg in relay.counts()
            ],
        }
        for side in Side:
            leg, wire = relay.legs[side], self.wires[side]
            state[f"to {side.name}"] = bytes(wire.went) + b"".join(leg.queue)
            state[f"leg {side.name}"] = (leg.queued, leg.reading, leg.fate)
        self.trace.append(state)


def fuzz_core(data: bytes) -> None:
    """One life, twice."""
    if not data or _CORE is None:
        return
    reference = _Traced(data, Relay)
    reference.run()
    _RULES.make_predictable(True)
    try:
        core = _Traced(data, _CORE)
        core.run()
    finally:
        _RULES.make_predictable(False)
    for number, (one, two) in enumerate(zip(reference.trace, core.trace, strict=False)):
        for what, value in one.items():
            assert two[what] == value, f"after fact {number}, {what}: {two[what]!r}, not {value!r}"
    assert len(reference.trace) == len(core.trace)
