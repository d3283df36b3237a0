"""Types of `uring_buffers.pyx`: what the kernel receives into."""

class RingBuffers:
    """`count` buffers, of which `out` are not in the kernel's ring."""

    count: int
    out: int

    def __init__(self, count: int) -> None: ...
    def withhold(self, withholding: bool) -> None: ...
