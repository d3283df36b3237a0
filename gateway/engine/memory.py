"""The engine for tests: the verbs of `core.py` over a simulated kernel and a virtual clock.

    network = Network(seed=7, weather=Weather(latency=0.001, cuts=0.3))
    engine = MemoryEngine(network)
    engine.listen(network.listener(address))
    client = network.connect_client(address)
    client.send(b"...")
    engine.advance(deliver, until=10.0)

Laws of this file:

- Time passes only when nothing is left to do: then the clock goes to whatever comes next.
- One seed, one script: one run. Random bytes are seeded too.
- A turn that leads to turns for ever at one instant is a bug, and asserted.
"""

import math
import random
import select
import socket
from typing import cast

from gateway.engine.contract import Deliver
from gateway.engine.core import SocketEngine
from gateway.engine.link_state import LinkState
from gateway.engine.memory_kernel import SimListener, SimPoller, SimSocket
from gateway.engine.memory_network import Network
from gateway.engine.memory_tls import SimMachine
from gateway.engine.memory_wire import FarEnd, Weather
from gateway.engine.relay_driver import RelayFactory
from gateway.relaying import Relay

__all__ = ["FarEnd", "MemoryEngine", "Network", "Weather"]

TURNS_MAX = 100_000                # at one instant; more is a spin


class MemoryEngine(SocketEngine):
    """See gateway.engine.contract.Engine. `relay_factory` takes the place of `Relay`."""

    name = "memory"

    def __init__(self, network: Network | None = None, relay_factory: RelayFactory = Relay):
        self.network = network or Network()
        self._sim_poller = SimPoller(self.network)
        super().__init__(self._sim_poller, relay_factory, SimMachine)
        self._random = random.Random(self.network.random.random())  # noqa: S311, see the laws
        self._running = False
        self._woken = False
        self._turns_at_once = 0

    def now(self) -> float:
        """See contract.Engine.now."""
        return self.network.now

    def run(self, deliver: Deliver) -> None:
        """See contract.Engine.run. That nothing would ever happen any more is asserted."""
        self.advance(deliver, math.inf)
        assert self._stopping, "the engine would sleep for ever"

    def advance(self, deliver: Deliver, until: float) -> None:
        """Run until the clock shows `until`, `stop`, or nothing is left that could happen."""
        assert not self._running
        self._deliver = deliver
        self._running = True
        try:
            while not self._stopping and self._step(until):
                pass
        finally:
            self._running = False
            if self._stopping:
                self._close_all()
        if math.isfinite(until) and not self._stopping:
            self.network.go_to(until)

    def stop(self) -> None:
        """See contract.Engine.stop."""
        self._stopping = True
        if not self._running:
            self._close_all()

    def random_bytes(self, count: int) -> bytes:
        """Seeded."""
        return self._random.randbytes(count)

    def unacknowledged(self, link: LinkState) -> int:
        """See core.SocketEngine."""
        sock = link.sock if link.secured is None else link.secured.sock
        return cast(SimSocket, sock).unacknowledged()

    def _step(self, until: float) -> bool:
        """One turn, or time goes on; False if nothing happens until then."""
        if self._woken or self._news or self._is_due() or self._sim_poller.any_ready():
            self._turns_at_once += 1
            assert self._turns_at_once < TURNS_MAX, "the engine spins"
            self._woken = False
            self._turn()
            return True
        at = min(self.network.next_at(), self.timers.next_at())
        if at > until or at == math.inf:
            return False
        if at > self.network.now:
            self._turns_at_once = 0
        self.network.go_to(at)
        return True

    def _is_due(self) -> bool:
        return self.timers.next_at() <= self.network.now

    def _open_socket(self, family: int) -> socket.socket:
        return cast(socket.socket, self.network.open(family))

    def _open_pair(self) -> tuple[socket.socket, socket.socket]:
        return cast("tuple[socket.socket, socket.socket]", self.network.open_pair())

    def _is_readable(self, sock: socket.socket) -> bool:
        return bool(cast(SimListener, sock).readiness() & select.EPOLLIN)

    def _free_for_links(self) -> float:
        """They run out by the weather, which nobody foresees."""
        return math.inf

    def _wake(self) -> None:
        self._woken = True
