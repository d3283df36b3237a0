"""Types of `ring_completions.pyx`: relays whose bytes the ring itself receives and sends."""

from gateway.engine.ring_relays import RingRelays

class RingCompletions(RingRelays):
    """RingRelays, and buffers. `hungry`: sides that wait for one."""

    hungry: int

    def __init__(
        self, pipes_max: int = ..., *, entries: int = ..., completions: int = ..., buffers: int
    ) -> None: ...
    def withhold(self, withholding: bool) -> None: ...
    def key_of_receive(self, index: int, side: int) -> int: ...
