"""Which listeners a worker accepts from, and how it stops: whoever waits is taken first.

To close the last descriptor of a listening socket is to reset all who wait in its backlog, and they
may have sent a request. So a listener that goes, by a reload or at a drain, is closed only when
nobody waits there any more.

Laws of this file:

- A crowd without end keeps no listener open: `LAST_ACCEPTS` seconds are the most.
- Where others go on accepting from the same socket nobody is waited for: who waits is theirs.
- Whoever has another listener go is told when it is closed, also where the end comes between.
"""

from collections.abc import Callable, Collection
from socket import socket

from gateway.engine.contract import Engine
from gateway.events import Link
from gateway.table import Listener

LAST_ACCEPTS = 1.0            # seconds in which who is connected already is accepted
STEP = 0.005                  # between two looks; the first is at once
LOOK = "unlisten"             # the name of its timer on the worker's own link

Told = Callable[[], None]


class Accepting:
    """One worker's listeners, by the numbers that the supervisor gave them.

    `look` at each `LOOK` of `own`, the link of the worker's timers.
    """

    def __init__(self, engine: Engine) -> None:
        self.own: Link = -1
        self._engine = engine
        self._open: dict[int, Link] = {}
        self._listeners: dict[Link, Listener] = {}  # those that go or have gone, too
        self._going: set[Link] = set()
        self._gone: list[Link] = []     # of which an `Accepted` may still be on its way
        self._until = 0.0               # for how long those that go are looked at
        self._waiting: list[Told] = []  # who is told when those that go are closed
        self._over = False              # our own end has begun

    @property
    def numbers(self) -> Collection[int]:
        """The numbers of those that are accepted from, and stay."""
        return self._open.keys()

    @property
    def links(self) -> Collection[Link]:
        """The engine's numbers of the same; a view, which follows what changes."""
        return self._open.values()

    @property
    def is_open(self) -> bool:
        """Whether somebody may still come."""
        return bool(self._open or self._going)

    def listener(self, link: Link) -> Listener:
        """What a client that came by this link has to go by."""
        return self._listeners[link]

    def change(self, listeners: dict[int, Listener], sockets: dict[int, socket]) -> None:
        """Accept from these, and from others only who waits; of new ones here are the sockets.
        Nothing changes once we go: a reload and our end may have crossed."""
        if self._over:
            for each in sockets.values():
                each.close()
            return
        while self._gone:
            self._listeners.pop(self._gone.pop(), None)
        for number, listener in listeners.items():
            if number not in self._open:
                self._open[number] = self._engine.listen(sockets[number])
            self._listeners[self._open[number]] = listener
        for number in [number for number in self._open if number not in listeners]:
            link = self._open.pop(number)
            self._engine.read(link)     # the balance may have held it
            self._going.add(link)

    def go(self, at: float) -> None:
        """Accept who waits, and then nobody."""
        self._over = True
        self._going.update(self._open.values())
        self._open.clear()
        self.closed(at, lambda: None)

    def closed(self, at: float, told: Told) -> None:
        """Call this once those that go are closed; at once where none does."""
        if not self._going:
            told()
            return
        self._waiting.append(told)
        self._until = at + LAST_ACCEPTS
        self._engine.set_timer(self.own, LOOK, at)

    def look(self, at: float) -> None:
        """Does somebody still wait?"""
        if at < self._until and any(map(self._engine.waits, self._going)):
            self._engine.set_timer(self.own, LOOK, at + STEP)
        else:
            self._close()

    def leave(self, at: float, alone: Collection[int] = ()) -> None:
        """Accept nobody more: who waits is for others. Those by these numbers nobody else has, so
        that who waits there is accepted."""
        self._over = True
        self._going.update(link for number, link in self._open.items() if number in alone)
        self._unlisten([link for number, link in self._open.items() if number not in alone])
        self._open.clear()
        self.closed(at, lambda: None)

    def end(self) -> None:
        """Accept nobody more at all."""
        self._over = True
        self._unlisten(self._open.values())
        self._open.clear()
        self._engine.clear_timer(self.own, LOOK)
        self._close()

    def _close(self) -> None:
        """Those that go have had their time."""
        self._unlisten(self._going)
        self._going.clear()
        waiting, self._waiting = self._waiting, []
        for told in waiting:
            told()

    def _unlisten(self, links: Collection[Link]) -> None:
        for link in links:
            self._engine.unlisten(link)
            self._gone.append(link)
