"""Runs lives: one, or very many on all cores; says what broke, and how to see it again."""

import concurrent.futures
import contextlib
import importlib.util
import multiprocessing
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from simulation.judge import judge
from simulation.mutants import MUTANTS
from simulation.watch import BrokenInvariantError
from simulation.world import Cast, World

TLS = "tls"                            # the rules in Python, and TLS on every link
CASTS = {"python": Cast(), TLS: Cast(name=TLS, tls=True), **MUTANTS}
RELAYS = ["python"]                    # the sound ones that are here
if importlib.util.find_spec("gateway.engine.compiled") is None:

    def make_predictable(on: bool) -> None:
        """Nothing is compiled here."""

else:
    from gateway.engine.compiled import CompiledRelay
    from gateway.engine.relay import make_predictable

    CASTS["compiled"] = Cast(relay=CompiledRelay, name="compiled")
    RELAYS.append("compiled")

CHUNK = 50                             # lives that a process is given at once
SHOWN = 12                             # lines of a traceback


@dataclass(frozen=True, slots=True)
class Failure:
    """A life in which something did not hold."""

    seed: int
    relay: str                         # a name in CASTS
    what: str

    def __str__(self) -> str:
        return (
            f"seed {self.seed}, {self.relay}: {self.what}\n"
            f"  replay: python -m tests.simulation --seed {self.seed} --relay {self.relay}"
        )


@contextlib.contextmanager
def predictable() -> Iterator[None]:
    """The compiled rules, where there are any, draw the same masks and pings each time."""
    make_predictable(True)
    try:
        yield
    finally:
        make_predictable(False)


def live(seed: int, relay: str = "python", *, talk: bool = False) -> tuple[World, str]:
    """One life, and what did not hold in it, or nothing."""
    world = World(seed, CASTS[relay], talk=talk)
    try:
        with predictable():
            world.run()
        judge(world)
    except BrokenInvariantError as broken:
        return world, str(broken)
    except Exception:  # noqa: BLE001 - whatever it is, it is what did not hold
        return world, "\n".join(traceback.format_exc().strip().splitlines()[-SHOWN:])
    return world, ""


def live_many(seeds: Sequence[int], relay: str) -> list[Failure]:
    """Many lives, one after another."""
    failures = []
    for seed in seeds:
        _, what = live(seed, relay)
        if what:
            failures.append(Failure(seed, relay, what))
    return failures


def live_on_all_cores(base: int, lives: int, relays: Sequence[str]) -> Iterator[list[Failure]]:
    """Lives `base` and on, each with the next of these relays; gives what failed, by chunks."""
    jobs = [
        (list(range(base + at, base + min(at + CHUNK, lives))), relays[at // CHUNK % len(relays)])
        for at in range(0, lives, CHUNK)
    ]
    spawn = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=spawn)
    try:
        for future in [pool.submit(live_many, *job) for job in jobs]:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)     # whoever stops early waits for one chunk only


def hunt(name: str, lives: int, base: int = 0) -> tuple[int, str] | None:
    """After how many lives this broken one is caught, and by what; None if it is not."""
    for count in range(lives):
        _, what = live(base + count, name)
        if what:
            return count + 1, what
    return None
