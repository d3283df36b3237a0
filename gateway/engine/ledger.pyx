# cython: language_level=3, boundscheck=False, wraparound=False
"""The ledger of a debug build: what was ever made and freed by compiled parts, in this process.

After a test, and when an engine has stopped, both are equal for each kind. A part that makes
something of a new kind adds it here.
"""

KINDS = ("relays", "descriptors", "queues", "tails", "timers", "pipes", "pipes lent",
         "contexts", "secured")


def is_kept() -> bool:
    """True in a debug build; else nothing is counted."""
    return DEBUG


def entries() -> dict[str, tuple[int, int]]:
    """Of each kind, how many were made and how many freed."""
    assert len(KINDS) == L_KINDS
    return {KINDS[i]: (ledger.made[i], ledger.freed[i]) for i in range(L_KINDS)}


def not_freed() -> dict[str, int]:
    """The kinds of which something is left, and how much. Contexts are left out: they live as long
    as the settings that they were made of."""
    return {
        kind: made - freed
        for kind, (made, freed) in entries().items()
        if made != freed and kind != "contexts"
    }
