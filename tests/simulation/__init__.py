"""The simulation: seeded lives of a whole gateway on the memory engine, and what must hold in all.

    python -m tests.simulation                     2,000 lives from a fresh base
    python -m tests.simulation --lives 100000      on all cores
    python -m tests.simulation --seed 4711         one life again, told step by step
    python -m tests.simulation --hunt forgets_fin  how soon a broken relay is caught (or: all)
    python -m tests.simulation --record FILE       write what the relays were told

A life is one world: the real worker with real sessions, routes, pools and limits, a simulated
network and a virtual clock, a few clients and the upstreams that they reach, all of whom may be
slow, rude, broken or gone at any byte; and its drain or its sudden end.

- `plans.py` and `heads.py` draw what everybody will do; `ends.py` does it; `codec.py` is what they
  know of frames and answers, written from the RFCs and without a look at the gateway's own code.
- `watch.py` looks over the engine's and the relay's shoulders; `world.py` puts all together.
- `story.py` is what the far ends of one relay said, heard and did. By it `oracle.py` says what may
  arrive and what must, `verdicts.py` how a relay may end, when, and what each side is told;
  `accounts.py` compares the gateway's records and counters. `judge.py` asks them all.
- `lives.py` runs many; `recorded.py` keeps what relays were told, for other relays.
- `mutants.py` has faults that must be found: the test of the test.

Laws: one seed is one life, to the byte. What may arrive is judged by what the far ends said and
did, never by what the gateway says of itself; its own account is then compared with theirs.
"""
