"""Who answers events with commands, and the links that are its own: what a worker keeps of each.

Must never: decide anything, or call the engine.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from gateway import events
from gateway.control.counters import NOTHING_MOVED
from gateway.errors import Fault
from gateway.events import Command, Event, Link, RelayRules, Side
from gateway.protocol.echo import EchoEndpoint
from gateway.table import Listener


class Machine(Protocol):
    """What has links and answers events with commands: a session, or a built-in endpoint."""

    @property
    def over(self) -> bool:
        """Nothing more is to come: forget it."""

    def handle(self, side: Side, event: Event, /) -> list[Command]:
        """One event of one of its links."""


class Echo:
    """A built-in echo endpoint. It is at the far end of a pair, which is its client's link."""

    __slots__ = ("endpoint", "over")

    def __init__(self) -> None:
        self.endpoint = EchoEndpoint()
        self.over = False

    def handle(self, _side: Side, event: Event, /) -> list[Command]:
        """All its events are of its one link; with that link's end it is over."""
        self.over = type(event) is events.Closed
        return self.endpoint.handle(event)


class Party:
    """A machine with the links that are its own now."""

    __slots__ = (
        "client", "counted", "listener", "machine", "name", "rules", "unpaired", "upstream",
    )

    def __init__(self, machine: Machine, client: Link, name: str) -> None:
        self.machine = machine
        self.name = name
        self.counted = NOTHING_MOVED        # what of its relay is in the counters already
        self.client: Link | None = client
        self.upstream: Link | None = None
        self.rules: RelayRules | None = None  # of its relay
        self.unpaired: Fault | None = None  # why a pair could not be made; told in the next batch


class Comer(NamedTuple):
    """A client that was accepted."""

    name: str
    accepted: events.Accepted
    listener: Listener


@dataclass(slots=True)
class Counts:
    """What one worker has seen."""

    accepted: int = 0
    refused: int = 0                    # cut at accept: far more connections than sessions
    crashed: int = 0                    # sessions that raised
    cut: int = 0                        # sessions that were cut in a drain, or by SIGINT
