"""The benchmark: this gateway beside other proxies and bare relays, in one run.

    python -m tests.bench            the full comparison (estimated at 40 minutes)
    python -m tests.bench --quick    three short rounds, for a first look
    python -m tests.bench --prepare  fetch the proxies that no distribution packages

The proxy is pinned to one core, clients and upstreams (one compiled program, `native/load.c`) to
another. Rounds alternate between the proxies, so that a machine that drifts drifts for all; every
figure is a median over rounds with its interval, and ratios are taken within a round. CPU time is
that of the proxy's whole process tree, from the processes' own clocks.

Laws: a message counts only if it was right; a proxy that fails a case is named and left out of
it; what was not measured is never shown as a figure; nothing here asserts a time.
"""
