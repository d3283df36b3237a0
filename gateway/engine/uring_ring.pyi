"""Types of `uring_ring.pyx`: one ring."""

class RingRefused(Exception):
    """A ring cannot be had."""

    step: str
    number: int

    def __init__(self, step: str, number: int) -> None: ...

class Ring:
    """One ring; its verbs are for compiled drivers. Raises `RingRefused`."""

    pending: int
    enters: int
    overflows: int
    error: int
    form: str
    is_restricted: bool
    fd: int

    def __init__(self, entries: int = ..., completions: int = ...) -> None: ...
    def close(self) -> int: ...
