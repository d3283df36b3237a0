"""The simulation's command. `python -m tests.simulation --help` tells the options.

Exit code 1 when something did not hold in a life, or a broken relay was not caught.
"""

import argparse
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as pytest's `pythonpath` has it

from simulation import lives, recorded
from simulation.mutants import MUTANTS

SHOWN = 20                             # failures that are told; the others are counted
EVERY = 5.0                            # seconds between two words of progress


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    add = parser.add_argument
    add("--lives", type=int, default=2000, help="how many (%(default)s)")
    add("--base", type=int, help="the first seed; else a fresh one")
    add("--seed", type=int, help="one life again, told step by step")
    add("--relay", choices=sorted(lives.CASTS),
        help="whose rules; else those in Python, the compiled ones, and over TLS, by turns")
    add("--hunt", metavar="NAME", choices=["all", *MUTANTS], help="how soon it is caught")
    add("--record", type=Path, metavar="FILE", help="write what the relays of the lives were told")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Run what the words say."""
    arguments = _arguments(words)
    base = random.SystemRandom().randrange(1 << 32) if arguments.base is None else arguments.base
    if arguments.seed is not None:
        return tell(arguments.seed, arguments.relay or "python")
    if arguments.hunt:
        names = list(MUTANTS) if arguments.hunt == "all" else [arguments.hunt]
        return hunt(names, arguments.lives, arguments.base or 0)
    if arguments.record:
        scripts = recorded.record(range(base, base + arguments.lives))
        recorded.dump(scripts, arguments.record)
        print(f"{len(scripts)} scripts of {arguments.lives} lives from {base}")
        return 0
    relays = [arguments.relay] if arguments.relay else [*lives.RELAYS, lives.TLS]
    return run(base, arguments.lives, relays)


def run(base: int, count: int, relays: Sequence[str]) -> int:
    """Many lives."""
    print(f"{count} lives, seeds {base} to {base + count - 1}, relays: {', '.join(relays)}")
    failed, done, began, said = 0, 0, time.monotonic(), time.monotonic()
    for failures in lives.live_on_all_cores(base, count, relays):
        done += lives.CHUNK
        for failure in failures:
            failed += 1
            if failed <= SHOWN:
                print(failure, flush=True)
        if time.monotonic() - said > EVERY:
            said = time.monotonic()
            print(f"  {min(done, count)} lives, {failed} failed", flush=True)
    print(f"{count} lives in {time.monotonic() - began:.0f} s, {failed} failed")
    return 1 if failed else 0


def tell(seed: int, relay: str) -> int:
    """One life, step by step."""
    world, what = lives.live(seed, relay, talk=True)
    print("\n".join(world.log))
    print(f"\nmood {world.mood}, drain at {world.drain_at}, kill at {world.kill_at}")
    print(f"weather {world.network.weather}")
    for record in world.notes.records:
        print(f"record {record}")
    print(f"\n{what or 'all invariants held'}")
    return 1 if what else 0


def hunt(names: Sequence[str], limit: int, base: int) -> int:
    """How soon faults are caught."""
    missed = 0
    for name in names:
        caught = lives.hunt(name, limit, base)
        missed += caught is None
        how = f"after {caught[0]} lives: {caught[1].splitlines()[-1]}" if caught else "never"
        print(f"{name:28} {how}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main(sys.argv[1:]))
