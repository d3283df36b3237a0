"""`python -m tests.scale`: 18,000 sessions over two workers, and a storm of 10,000.

A process here may open 20,000 files, as is usual; a session with an upstream has two of them in its
worker, so two workers hold 19,488 at the most. The two crowds and their upstreams are
processes of their own, with one for each session.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scale.run import Plan, scene


def main() -> None:
    """Run it, and print all figures as JSON at the end."""
    parser = argparse.ArgumentParser(prog="make scale", description=__doc__)
    parser.add_argument("--stayers", type=int, default=Plan.stayers)
    parser.add_argument("--storm", type=int, default=Plan.storm)
    parser.add_argument("--storm-seconds", type=float, default=Plan.storm_seconds)
    parser.add_argument("--refused", type=int, default=Plan.refused)
    parser.add_argument("--workers", type=int, default=Plan.workers)
    parser.add_argument("--engine", default=Plan.engine, choices=["uvloop", "io_uring"])
    parser.add_argument("--handshakes", default=Plan.handshakes)
    chosen = vars(parser.parse_args())
    with scene(Plan(**chosen)) as run:
        figures = run.run(lambda line: print(line, flush=True))
    print(json.dumps(figures, indent=1))
    if figures["stayers"]["lost"]:
        sys.exit("sessions were lost that nobody cut")


if __name__ == "__main__":
    main()
