"""The compiled rules of a relay: its state, and the facts it can be told. See relay.pyx.

This is the page to read first: a driver (`epoll_relays.pyx`, later the ring's) includes it, owns
the sockets and what is queued, and calls these functions without the GIL.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from gateway.engine.payload cimport Utf8

cdef enum:
    CLIENT = 0
    UPSTREAM = 1

    # Fate of a leg, as gateway.leg.Fate.
    OPEN = 0
    FINISH = 1
    CLOSE = 2
    RESET = 3

    NO_SIDE = 2
    D_NONE = 0
    D_FAULT = 64                # details from here on: a fault's number
    NO_CAUSE = 0
    KILLED = 15                 # of the causes, the one that drivers name themselves
    NO_CLOSE = -1               # no Close was received, or sent
    FIN_ONLY = -2               # a farewell without a Close: toward raw bytes

    SPANS = 64                  # pieces for one side that one call may give
    OWN_MAX = 2048              # bytes of the gateway's own frames that one call may give
    TAIL_MAX = 139              # a control frame or a header that is not whole

cdef struct Cursor:
    # One direction's walk; the fields of gateway.frames.Cursor.
    uint64_t remaining
    uint64_t frame_size         # payload of the data frame under way, or of the last one
    uint64_t message_size
    uint64_t frames
    uint64_t messages
    uint64_t payload
    uint32_t tail               # bytes that the driver gives again, before the next ones
    uint8_t mask[4]
    uint8_t mask_at             # payload byte modulo 4 that comes next
    uint8_t opcode_is_text
    uint8_t fragmented
    uint8_t final
    uint8_t broken
    uint8_t header_left         # of a peeked header: bytes that are still in the socket
    Utf8 utf8                   # of the text message under way, toward raw bytes

cdef struct Leg:
    Cursor cursor
    double heard_at
    double taken_at
    double probe_at             # 0: none (the clock never shows 0)
    double ping_at
    double foreign_ping_at      # 0: none
    double round_trip           # negative: none was measured
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t spliced            # of bytes_in
    uint64_t wrapped
    uint64_t queued
    int64_t acknowledged        # of bytes_out, as far as the far end took them
    uint32_t pings_sent
    uint32_t pings_waiting      # of ours, that were not answered
    int32_t close_received
    int32_t close_sent
    int32_t pending_code        # of a farewell that waits for the end of a frame
    uint8_t pending
    uint8_t pending_reason
    uint8_t fate
    uint8_t raw
    uint8_t gone
    uint8_t finished
    uint8_t cut                 # reset while bytes or a farewell waited for it
    uint8_t clogged
    uint8_t reading
    uint8_t behind              # when that was asked last, some were on their way
    uint8_t ping_payload[8]     # of our latest ping

cdef struct Rules:
    # One route's terms; shared by its relays, by index.
    uint64_t max_message
    uint64_t max_frame
    uint64_t max_queue
    double idle_timeout
    double write_timeout
    double close_timeout
    double session_timeout
    double heartbeat
    double heartbeat_timeout
    int32_t session_code
    int32_t drain_code
    uint8_t raw
    uint8_t raw_text
    uint8_t deflate
    uint8_t drain_reason_size
    char drain_reason[124]

cdef struct Relay:
    # Flat, without a pointer: it can be copied, kept in shared memory, handed to another process.
    Leg legs[2]
    double deadline             # infinite: none
    double since                # close_timeout counts from then, or later
    double held_at              # since then the answer to a Close is not read; infinite: it is
    double session_at
    double limit_at
    double active_at
    uint64_t detail_size        # numbers for the detail's sentence
    uint64_t detail_limit
    uint32_t rules
    uint8_t cause
    uint8_t side
    uint8_t detail
    uint8_t first               # who sent the first Close or FIN; NO_SIDE: nobody yet

cdef struct Span:
    # Bytes to send. They lie in what was read, or in `Output.own`.
    const uint8_t *data
    size_t size

cdef struct Output:
    # What one call gives: pieces for each side, in order.
    Span spans[2][SPANS]
    int count[2]
    size_t own_used
    bint more                   # full: send this, then call again with what was not consumed
    uint8_t own[OWN_MAX]

# Facts. All take the time in seconds. None of them fails, blocks, or allocates.
cdef void relay_init(Relay *relay, const Rules *rules, uint32_t index, double now) noexcept nogil
cdef size_t relay_received(
    Relay *relay, const Rules *rules, int side, uint8_t *data, size_t size, double now, Output *out
) noexcept nogil
cdef bint relay_peeked(
    Relay *relay, const Rules *rules, int side, const uint8_t *data, size_t size, uint64_t least
) noexcept nogil
cdef void relay_spliced(
    Relay *relay, const Rules *rules, int side, size_t size, double now
) noexcept nogil
cdef void relay_wrapped(
    Relay *relay, const Rules *rules, size_t size, double now, Output *out
) noexcept nogil
cdef void relay_finished(
    Relay *relay, const Rules *rules, int side, double now, Output *out
) noexcept nogil
cdef void relay_truncated(
    Relay *relay, const Rules *rules, int side, double now, Output *out
) noexcept nogil
cdef void relay_lost(
    Relay *relay, const Rules *rules, int side, int detail, double now, Output *out
) noexcept nogil
cdef void relay_sent(
    Relay *relay, const Rules *rules, int side, size_t size, double now
) noexcept nogil
cdef void relay_acknowledged(
    Relay *relay, const Rules *rules, int side, uint64_t waiting, double now
) noexcept nogil
cdef void relay_tick(Relay *relay, const Rules *rules, double now, Output *out) noexcept nogil
cdef void relay_end(
    Relay *relay, const Rules *rules, int cause, double now, Output *out
) noexcept nogil
cdef bint relay_is_open(const Relay *relay) noexcept nogil
cdef bint relay_is_over(const Relay *relay) noexcept nogil
cdef bint leg_is_done(const Leg *leg) noexcept nogil
