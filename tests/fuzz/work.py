"""Counts what code does, without a clock: the same input costs the same on every machine.

Two counts, since each sees what the other cannot:

- `steps`: lines executed in the gateway's own files, each turn of a loop on one line, too;
- `moved`: bytes that its operations on byte strings copied or searched, in C. They are counted by
  `Bytes` and `Array`, which do the same as `bytes` and `bytearray`; `measure` hands them to the
  code by putting them under those names into the modules that it is given.

What neither sees is a regular expression: `test_linear.py` has long inputs for those.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Self, SupportsIndex

import gateway

HOUSE = str(Path(gateway.__file__).parent)


@dataclass
class Work:
    """What was done."""

    steps: int = 0
    moved: int = 0


_now = Work()


def _moved(made: bytes | bytearray) -> "Bytes":
    _now.moved += len(made)
    return Bytes(made)


class Bytes(bytes):
    """Bytes whose copies and searches are counted."""

    def __add__(self, other: Any) -> "Bytes":
        return _moved(bytes(self) + other)

    def __radd__(self, other: Any) -> "Bytes":
        return _moved(other + bytes(self))

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return _moved(found) if isinstance(found, bytes) else found

    def decode(self, *more: Any, **named: Any) -> str:
        _now.moved += len(self)
        return super().decode(*more, **named)


class Array(bytearray):
    """A bytearray whose copies and searches are counted. To cut off its front costs nothing."""

    def __iadd__(self, other: Any) -> Self:  # type: ignore[misc]
        _now.moved += len(other)
        super().__iadd__(other)
        return self

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return _moved(found) if isinstance(found, bytearray) else found

    def find(
        self, sub: Any, start: SupportsIndex | None = None, end: SupportsIndex | None = None
    ) -> int:
        begin = 0 if start is None else start.__index__()
        stop = len(self) if end is None else min(len(self), end.__index__())
        found = super().find(sub, begin, stop)
        _now.moved += max(0, (stop if found < 0 else found) - begin)
        return found


def _trace_calls(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
    """The tracer for every new frame: those of the house are followed line by line."""
    return _trace_lines if frame.f_code.co_filename.startswith(HOUSE) else None


def _trace_lines(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
    """A line begins, or is run again by a loop that stands on it."""
    if event == "line":
        _now.steps += 1
    return _trace_lines


@contextmanager
def _watched(modules: tuple[ModuleType, ...]) -> Iterator[None]:
    """The counting types under the usual names, and every line counted."""
    before = sys.gettrace()
    for module in modules:
        vars(module)["bytearray"] = Array
    sys.settrace(_trace_calls)
    try:
        yield
    finally:
        sys.settrace(before)
        for module in modules:
            del vars(module)["bytearray"]


def measure(action: Callable[[Callable[[bytes], bytes]], object], *modules: ModuleType) -> Work:
    """What `action` does. It is given a function that makes counted bytes of plain ones."""
    global _now  # noqa: PLW0603 (the types above have no other way to it)
    _now = Work()
    with _watched(modules):
        action(Bytes)
    return _now
