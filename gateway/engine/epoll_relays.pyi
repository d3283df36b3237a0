"""Types of `epoll_relays.pyx`: compiled relays in one epoll descriptor."""

from typing import TypeAlias

from gateway.engine.ktls_handover import KernelLeg
from gateway.engine.secure_leg import SecureLeg
from gateway.errors import Fault
from gateway.events import Cause, LegCounts, RelayRules, Side

Outcome: TypeAlias = tuple[Cause, Side | None, str]

class EpollRelays:
    """All compiled relays of one engine. Every method is for the engine's thread."""

    live: int
    turns: int
    calls: int
    waits: int
    queues: int
    tails: int
    ended_waiting: int
    put_off_size: int

    def __init__(self, pipes_max: int = ...) -> None: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...
    def stats(self) -> dict[str, int]: ...
    def begin(
        self,
        client: int,
        upstream: int,
        client_fd: int,
        upstream_fd: int,
        terms: RelayRules,
        early: list[tuple[Side, bytes]],
        queued: tuple[bytes, ...],
        finished: tuple[bool, ...],
        secure: tuple[SecureLeg | KernelLeg | None, ...] = ...,
        /,
    ) -> int: ...
    def end(self, index: int, cause: Cause, terms: RelayRules | None = None) -> None: ...
    def cut(self, index: int) -> None: ...
    def counts(self, index: int) -> tuple[LegCounts, LegCounts]: ...
    def active_at(self, index: int) -> float: ...
    def take_ended(
        self,
    ) -> list[
        tuple[int, int, Outcome, tuple[LegCounts, LegCounts], tuple[Fault | None, Fault | None]]
    ]: ...
    def abandon_all(self) -> None: ...
    def drain(self, alarm_at: float = ...) -> bool: ...
    def next_at(self) -> float: ...
    def tick(self) -> bool: ...
    def limit_turns(self, seconds: float, /) -> None: ...
    def limit_ends(self, seconds: float, /) -> None: ...
