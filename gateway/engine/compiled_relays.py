"""Hands relays over to the compiled driver, and its reports back to the engine.

A relay that is handed over leaves the engine's poller and its table of links: it costs a slot in
C and two numbers here. Its links come back as news when it has ended.

Never: look at a byte. What the driver does is in `relay_loop.pyx`; where it waits, in
`epoll_relays.pyx` and `ring_relays.pyx`.
"""

import math
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

from gateway.engine import descriptors
from gateway.engine.epoll_relays import EpollRelays
from gateway.engine.ktls_handover import KernelLeg
from gateway.engine.link_state import OPEN, LinkState
from gateway.engine.relay_driver import set_kernel_limits, undelivered
from gateway.engine.secure_leg import SecureLeg
from gateway.events import (
    CLIENT,
    UPSTREAM,
    Cause,
    Closed,
    LegCounts,
    Link,
    RelayEnded,
    RelayRules,
)

if TYPE_CHECKING:
    from gateway.engine.core import SocketEngine
    from gateway.engine.ring_relays import RingRelays


class CompiledRelays:
    """The compiled relays of one engine. `slots` says which links they have. They wait in an epoll
    descriptor of their own, or in the `ring` that is the engine's loop."""

    def __init__(self, engine: "SocketEngine", ring: "RingRelays | None" = None):
        self._engine = engine
        self._driver: EpollRelays | RingRelays = (
            ring if ring is not None else EpollRelays(descriptors.pipes_max())
        )
        self.slots: dict[Link, int] = {}
        self._ktls: dict[int, tuple[str, str]] = {}     # by the slot, where there is TLS

    def fileno(self) -> int:
        """To be watched for reading; `drain` is due when it is readable. Not where a ring is."""
        assert isinstance(self._driver, EpollRelays)
        return self._driver.fileno()

    @property
    def queued(self) -> int:
        """Bytes that wait in user space."""
        return int(self._driver.stats()["queued"])

    @property
    def calls(self) -> int:
        """System calls that moved bytes of relays or waited for them, ever."""
        return self._driver.calls + self._driver.waits

    @property
    def live(self) -> int:
        """Relays that run."""
        return self._driver.live

    @staticmethod
    def may_have(*links: LinkState) -> bool:
        """Alive, and on sockets of the kernel's; where there is TLS, relays can go on with it."""
        return all(
            link.state is OPEN and link.fault is None and (
                type(link.sock) is socket.socket if link.secured is None
                else isinstance(link.secured.machine, SecureLeg)
            )
            for link in links
        )

    def begin(
        self, client: LinkState, upstream: LinkState, rules: RelayRules, early: tuple[bytes, bytes]
    ) -> None:
        """Take over two living links."""
        links = (client, upstream)
        bytes_first = [
            (side, data)
            for side in (CLIENT, UPSTREAM)
            for data in (early[side], *undelivered(links[side]))
            if data
        ]
        queued = tuple(b"".join(link.queue or ()) for link in links)
        finished = tuple(link.finished for link in links)
        legs = tuple(leg_of(link) for link in links)
        set_kernel_limits(client, upstream, rules)
        slot = self._driver.begin(
            client.number, upstream.number,
            self._engine.detach(client), self._engine.detach(upstream),
            rules, bytes_first, queued, finished, legs,
        )
        self.slots[client.number] = self.slots[upstream.number] = slot
        if client.ktls or upstream.ktls:
            self._ktls[slot] = client.ktls, upstream.ktls
        self.report()

    def end(self, link: Link, cause: Cause, rules: RelayRules | None) -> None:
        """Ordered from above."""
        self._driver.end(self.slots[link], cause, rules)
        self.report()

    def cut(self, link: Link) -> None:
        """Both sides, at once and without a farewell."""
        self._driver.cut(self.slots[link])
        self.report()

    def inspect(self, link: Link) -> tuple[LegCounts, LegCounts]:
        """Counters of a running relay."""
        slot = self.slots[link]
        return self._with_ktls(slot, self._driver.counts(slot))

    def _with_ktls(
        self, slot: int, counts: tuple[LegCounts, LegCounts]
    ) -> tuple[LegCounts, LegCounts]:
        told = self._ktls.get(slot)
        if told is None:
            return counts
        return replace(counts[0], ktls=told[0]), replace(counts[1], ktls=told[1])

    def active_at(self, link: Link) -> float:
        """When the last byte of the stream came."""
        return self._driver.active_at(self.slots[link])

    def drain(self, alarm_at: float) -> bool:
        """Do what is ready and due. True: ends are to be reported, or an alarm set that is sooner
        than this one. A ring does all that in its own wait."""
        assert isinstance(self._driver, EpollRelays)
        return self._driver.drain(alarm_at)

    def next_at(self) -> float:
        """When `tick` is due; infinite if never."""
        return self._driver.next_at() if self._driver.live else math.inf

    def tick(self) -> None:
        """Do what is due."""
        if self._driver.tick():
            self.report()

    def report(self) -> None:
        """Post the ends as news of their clients."""
        if not self._driver.ended_waiting:
            return
        now = self._engine.now()
        for client, upstream, outcome, counts, faults in self._driver.take_ended():
            slot = self.slots.pop(client)
            del self.slots[upstream]
            cause, side, detail = outcome
            ended = RelayEnded(
                now, client, upstream=upstream, cause=cause, side=side, detail=detail,
                counts=self._with_ktls(slot, counts),
            )
            self._ktls.pop(slot, None)
            closed = (Closed(now, client, faults[0]), Closed(now, upstream, faults[1]))
            self._engine.come_back(client, upstream, ended, *closed)

    def abandon(self) -> None:
        """The engine stops."""
        self._driver.abandon_all()
        self._driver.close()
        self.slots.clear()


def leg_of(link: LinkState) -> SecureLeg | KernelLeg | None:
    """The TLS that goes with the link's descriptor."""
    if link.secured is None:
        return link.kernel
    leg = link.secured.machine
    assert isinstance(leg, SecureLeg)
    return leg.hand_over(bytes(link.secured.unsent), link.secured.owed)
