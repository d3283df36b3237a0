"""Types of `uring_ring.pyx`: one ring."""

from gateway.engine.uring_buffers import RingBuffers

def call_cost_ns() -> int: ...

class RingRefused(Exception):
    """A ring cannot be had."""

    step: str
    number: int

    def __init__(self, step: str, number: int) -> None: ...

class Ring:
    """One ring; its verbs are for compiled drivers. Raises `RingRefused`."""

    pending: int
    enters: int
    submitted: int
    buffers: RingBuffers | None
    overflows: int
    error: int
    form: str
    is_restricted: bool
    fd: int

    def __init__(self, entries: int = ..., completions: int = ..., buffers: int = ...) -> None: ...
    def close(self) -> int: ...
