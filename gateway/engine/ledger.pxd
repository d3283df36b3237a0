"""What compiled parts create and free, counted; and laws that are looked at. See ledger.pyx.

Both cost nothing but in a debug build (GATEWAY_DEBUG for setup.py): DEBUG is a constant of C.
"""

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #include <stdio.h>
    #include <stdlib.h>
    #ifndef GATEWAY_DEBUG
    #define GATEWAY_DEBUG 0
    #endif
    #define GATEWAY_LAW(holds, text) \\
        do { \\
            if (GATEWAY_DEBUG && !(holds)) { \\
                fprintf(stderr, "broken law: %s\\n", text); \\
                abort(); \\
            } \\
        } while (0)
    """
    const bint DEBUG "GATEWAY_DEBUG"
    # Ends the process where this does not hold; of a debug build.
    void law "GATEWAY_LAW"(bint holds, const char *text) noexcept nogil

cdef enum:
    # What is counted; their names are in ledger.pyx.
    L_RELAYS
    L_DESCRIPTORS               # of relays, each side one
    L_QUEUES
    L_TAILS
    L_TIMERS
    L_PIPES                     # two descriptors each
    L_PIPES_LENT
    L_CONTEXTS                  # of TLS, one for each settings
    L_SECURED                   # states of TLS that relays have
    L_KINDS

cdef struct Ledger:
    uint64_t made[L_KINDS]
    uint64_t freed[L_KINDS]

cdef Ledger ledger


cdef inline void count_made(int kind) noexcept nogil:
    if DEBUG:
        ledger.made[kind] += 1


cdef inline void count_freed(int kind) noexcept nogil:
    if DEBUG:
        ledger.freed[kind] += 1
        law(ledger.freed[kind] <= ledger.made[kind], b"freed more often than made")
