"""What compiled relays know of TLS: a state, and a table of functions for it. See secure_leg.pyx.

This is the seam between `relay_carriage.pyx`, which has sockets and no TLS library, and whoever
has such a library (`openssl.pyx`) and no sockets while a relay runs.
"""

from libc.stdint cimport uint8_t

cdef enum:
    # What reading has come to, behind the bytes that it gave.
    TLS_MORE = 0                # more may come
    TLS_ENDED = 1               # close_notify came: a clean end
    TLS_BROKEN = 2              # an alert, or bytes that are no TLS

cdef struct TlsIo:
    # The memory of one call. What is read moves `sealed` on; what is written is put at `out_used`.
    const uint8_t *sealed
    size_t size
    uint8_t *out
    size_t out_used
    size_t out_room

cdef struct TlsCalls:
    # None of them blocks, takes the GIL, or makes a system call. What was put into `out` is to be
    # sent, in order, whatever the call returned.
    #
    # Opens what is in `io` into `clear`, which may lie in the same memory, at a distance of
    # TLS_HELD or more before it. Room for `io.size` + TLS_HELD bytes is always enough.
    int (*open)(
        void *state, TlsIo *io, uint8_t *clear, size_t room, size_t *count
    ) noexcept nogil
    # Seals `size` bytes, in records of at most TLS_RECORD bytes; False if it is broken.
    bint (*seal)(void *state, TlsIo *io, const uint8_t *data, size_t size) noexcept nogil
    # Says close_notify, once.
    void (*notify)(void *state, TlsIo *io) noexcept nogil
    # True while the state has read a part of a record, which nobody else has.
    bint (*holds)(void *state) noexcept nogil
    void (*free)(void *state) noexcept nogil

cdef enum:
    TLS_RECORD = 16384          # clear bytes of a record (RFC 8446 5.1)
    TLS_OVERHEAD = 256          # more than sealing one adds to it (RFC 8446 5.2)
    TLS_HELD = 17 * 1024        # more than a state holds of what it was given

cdef class SecureLeg:
    cdef void *state            # NULL: none, or given away
    cdef const TlsCalls *calls
    cdef bytes unopened         # received, and not yet given to `open`
    cdef bytes unsent           # sealed, and not yet taken by the socket
    cdef size_t owed            # clear bytes that `unsent` has, and its owner still counts as his
