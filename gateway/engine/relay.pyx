# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False
"""The rules of a relay in C: what `gateway/relaying.py` and `gateway/frames.py` say, to the byte.

Those two are the reference and carry the reasons; this file follows them function by function,
and a change is made there first. `tests/engine/test_relay.py`: random streams through both, alike.

Laws of this file:

- No GIL, no allocation, no system call but getrandom(2) for masks and pings, no pointer kept.
- What is not whole (a header, a control frame, a character) is not consumed: the driver gives it
  again with the next bytes. `Cursor.tail` counts it.
- Payloads are touched only to be unmasked, in place.
- Output is pieces of the input and of own frames; one call gives a few, then says `more`.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memmove, memset, strlen

from gateway.engine.codes cimport *
from gateway.engine.heartbeat cimport (
    PING_PAYLOAD, QUIET, SILENT, heartbeat_at, heartbeat_look, is_own_pong, note_ping, note_taken,
)
from gateway.engine.headers cimport advance, broken, build_header, look, open_frame
from gateway.engine.payload cimport Utf8, is_utf8, may_be_sent, unmask, utf8_walk

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *buffer, size_t size, unsigned int flags)

cdef double PING_RETRY = 0.25


# --- Random bytes ------------------------------------------------------------------------------

cdef bint predictable = False   # tests only: the reference's tests compare whole frames


cdef void random_bytes(uint8_t *into, size_t size) noexcept nogil:
    cdef size_t i
    if not predictable and getrandom(into, size, 0) == <ssize_t>size:
        return
    for i in range(size):
        into[i] = <uint8_t>(i + 1)


def make_predictable(on: bool) -> None:
    """For tests: masks and pings are 1, 2, 3 ... while this is on."""
    global predictable
    predictable = on


# --- Output ------------------------------------------------------------------------------------

cdef inline void give(Output *out, int side, const uint8_t *data, size_t size) noexcept nogil:
    """A piece for a side; joined to the one before where they touch."""
    cdef int count = out.count[side]
    cdef Span *last
    if count:
        last = &out.spans[side][count - 1]
        if last.data + last.size == data:
            last.size += size
            return
    out.spans[side][count].data = data
    out.spans[side][count].size = size
    out.count[side] = count + 1


cdef inline bint is_full(const Output *out) noexcept nogil:
    """Room is kept for the farewells of both legs and one answer, whatever comes."""
    return (
        out.count[0] > SPANS - 6 or out.count[1] > SPANS - 6 or out.own_used > OWN_MAX - 512
    )


cdef inline void queue_up(
    Leg *leg, Output *out, int side, const uint8_t *data, size_t size, double now
) noexcept nogil:
    if not leg.queued:
        leg.taken_at = now
    give(out, side, data, size)
    leg.queued += size


cdef void put(
    Relay *relay, const Rules *rules, int side, const uint8_t *data, size_t size, double now,
    Output *out
) noexcept nogil:
    """For a leg that can still be told things."""
    cdef Leg *leg = &relay.legs[side]
    if leg.fate != OPEN or leg.gone:
        return
    if not leg.queued and rules.write_timeout > 0:
        sooner(relay, now + rules.write_timeout)
    queue_up(leg, out, side, data, size, now)


cdef uint8_t *own_frame(
    Output *out, int side, int opcode, const uint8_t *payload, size_t size, size_t *whole
) noexcept nogil:
    """A control frame of ours in `out.own`, masked toward the upstream."""
    cdef uint8_t *frame = out.own + out.own_used
    cdef size_t at = 2
    frame[0] = <uint8_t>(0x80 | opcode)
    frame[1] = <uint8_t>size
    if side == UPSTREAM:
        frame[1] |= 0x80
        random_bytes(frame + 2, 4)
        at = 6
    memcpy(frame + at, payload, size)
    if side == UPSTREAM:
        unmask(frame + at, size, frame + 2, 0)
    whole[0] = at + size
    out.own_used += at + size
    return frame


# --- Set-up ------------------------------------------------------------------------------------

cdef void relay_init(Relay *relay, const Rules *rules, uint32_t index, double now) noexcept nogil:
    cdef int side
    cdef Leg *leg
    memset(relay, 0, sizeof(Relay))
    for side in range(2):
        leg = &relay.legs[side]
        leg.heard_at = leg.taken_at = now
        leg.round_trip = -1.0
        leg.close_received = leg.close_sent = NO_CLOSE
        leg.raw = rules.raw and side == UPSTREAM
        leg.reading = 1
    relay.rules = index
    relay.side = relay.first = NO_SIDE
    relay.session_at = now + rules.session_timeout if rules.session_timeout > 0 else INFINITY
    relay.limit_at = relay.session_at + patience(rules)
    relay.active_at = relay.since = now
    relay.held_at = INFINITY
    set_deadline(relay, rules, now)


cdef bint leg_is_done(const Leg *leg) noexcept nogil:
    return leg.gone or leg.fate == RESET or (leg.fate == CLOSE and not leg.queued)


cdef bint is_awaited(const Leg *leg) noexcept nogil:
    return not leg.gone and leg.fate < CLOSE


cdef bint relay_is_open(const Relay *relay) noexcept nogil:
    return not relay.cause and relay.first == NO_SIDE


cdef bint relay_is_over(const Relay *relay) noexcept nogil:
    return leg_is_done(&relay.legs[0]) and leg_is_done(&relay.legs[1])


cdef inline void raise_fate(Leg *leg, int fate) noexcept nogil:
    """Fates only grow. RESET drops what is queued: the driver must drop its pieces too."""
    if fate > leg.fate:
        leg.fate = <uint8_t>fate
    if leg.fate == RESET and (leg.queued or leg.pending):
        leg.cut = 1
        leg.queued = leg.pending = leg.behind = 0


cdef inline void give_up(Leg *leg) noexcept nogil:
    """Its time is over: RESET, which loses what the kernel still has for it, too."""
    leg.cut |= leg.behind
    raise_fate(leg, RESET)


# --- The walk: gateway.frames.Cursor; its headers are in headers.pxd ----------------------------

cdef int pass_payload(
    Relay *relay, const Rules *rules, uint8_t *data, size_t size, double now, Output *out,
    bint ending
) noexcept nogil:
    """Toward raw bytes: unmask a piece, check it if it is text, close up to the piece before."""
    cdef Cursor *cursor = &relay.legs[CLIENT].cursor
    cdef Leg *leg = &relay.legs[UPSTREAM]
    cdef size_t good = size
    cdef Span *last
    cdef uint8_t *place
    unmask(data, size, cursor.mask, cursor.mask_at)
    cursor.mask_at = (cursor.mask_at + size) & 3
    if cursor.opcode_is_text:
        good = utf8_walk(&cursor.utf8, data, size)
    if good:
        if out.count[UPSTREAM]:
            last = &out.spans[UPSTREAM][out.count[UPSTREAM] - 1]
            place = <uint8_t *>last.data + last.size
            if place < data and data - place < 16:      # only a header lies between
                memmove(place, data, good)
                data = place
        if ending:
            queue_up(leg, out, UPSTREAM, data, good, now)
        else:
            put(relay, rules, UPSTREAM, data, good, now, out)
    if good < size:
        advance(relay, rules, cursor, good)
        return broken(relay, cursor, C_TEXT, D_TEXT, 0, 0)
    return 0


cdef int control(
    Relay *relay, const Rules *rules, int side, uint8_t *frame, size_t size, size_t length,
    double now, Output *out, bint *own
) noexcept nogil:
    """A whole control frame. *own: it was the answer to our own ping."""
    cdef Leg *leg = &relay.legs[side]
    cdef Leg *other = &relay.legs[1 - side]
    cdef uint8_t payload[CONTROL_MAX]
    cdef int opcode = frame[0] & 0x0F
    cdef uint32_t code
    cdef uint8_t *answer
    cdef size_t whole
    memcpy(payload, frame + size, length)
    if side == CLIENT:
        unmask(payload, length, frame + size - 4, 0)
    own[0] = False
    if opcode == OP_CLOSE and length:
        code = payload[0] << 8 | payload[1]
        if not may_be_sent(code):
            return broken(relay, &leg.cursor, C_FRAMING, D_CLOSE_CODE, code, 0)
        if not is_utf8(payload + 2, length - 2):
            return broken(relay, &leg.cursor, C_TEXT, D_CLOSE_REASON, 0, 0)
    leg.cursor.frames += 1
    if opcode == OP_CLOSE:
        code = (payload[0] << 8 | payload[1]) if length else 1005
        on_close(relay, rules, side, code, frame, size + length, now, out)
        return 0
    if opcode == OP_PONG:
        if is_own_pong(leg, payload, length, now):
            own[0] = True
            return 0
        leg.foreign_ping_at = 0
    if not other.raw:
        if opcode == OP_PING:
            other.foreign_ping_at = now
        put(relay, rules, 1 - side, frame, size + length, now, out)
    elif opcode == OP_PING:
        answer = own_frame(out, side, OP_PONG, payload, length, &whole)
        put(relay, rules, side, answer, whole, now, out)
    return 0


cdef size_t walk(
    Relay *relay, const Rules *rules, int side, uint8_t *data, size_t size, double now,
    Output *out, bint *only_own
) noexcept nogil:
    """Walk on over `data`; gives how much was consumed. *only_own: nothing came but the answer to
    our own ping."""
    cdef Leg *leg = &relay.legs[side]
    cdef Cursor *cursor = &leg.cursor
    cdef size_t at = 0, start = 0, take, head
    cdef uint64_t length
    cdef int wrong = 0
    cdef bint own
    only_own[0] = True
    while at < size:
        if cursor.header_left:                  # peeked, checked, and then not spliced after all
            take = size - at
            if take > cursor.header_left:
                take = cursor.header_left
            cursor.header_left -= <uint8_t>take
            at += take
            continue
        if cursor.remaining:
            take = size - at
            if take > cursor.remaining:
                take = cursor.remaining
            if rules.raw:
                if is_full(out):
                    out.more = 1
                    break
                wrong = pass_payload(relay, rules, data + at, take, now, out, False)
                only_own[0] = False
                if wrong:
                    break
            wrong = advance(relay, rules, cursor, take)
            at += take
            if wrong:
                break
            continue
        wrong = look(relay, rules, side, data + at, size - at, &head, &length)
        if wrong or not head:
            break
        if data[at] & 0x08:
            if size - at < head + length:
                break
            if is_full(out):
                out.more = 1
                break
            if at > start and not rules.raw:
                put(relay, rules, 1 - side, data + start, at - start, now, out)
                only_own[0] = False
            wrong = control(relay, rules, side, data + at, head, length, now, out, &own)
            at += head + length
            start = at
            if wrong:
                break
            if not own:
                only_own[0] = False
            if leg.close_received != NO_CLOSE:
                at = start = size               # behind a Close nothing counts
                break
        else:
            wrong = open_frame(relay, rules, side, data + at, head, length)
            at += head
            only_own[0] = False
            if wrong:
                break
    if at > start and not rules.raw:
        put(relay, rules, 1 - side, data + start, at - start, now, out)
        only_own[0] = False
    if wrong:
        only_own[0] = False
        end_with(relay, rules, wrong & 0xFF, side, wrong >> 8, now, out)
        return size
    return at


cdef size_t wrap(
    Relay *relay, const Rules *rules, const uint8_t *data, size_t size, double now, Output *out
) noexcept nogil:
    """Bytes of a raw upstream become one frame; gives how much was consumed."""
    cdef Utf8 check
    cdef size_t good = size
    cdef bint wrong = False
    if rules.raw_text:
        check.need = 0
        good = utf8_walk(&check, data, size)
        wrong = good < size
        if check.need:
            # Step back to where the character began that is not whole.
            good -= 1
            while data[good] & 0xC0 == 0x80:
                good -= 1
    if good:
        put_header(relay, rules, good, now, out)
        put(relay, rules, CLIENT, data, good, now, out)
    if wrong:
        end_with(relay, rules, C_TEXT, UPSTREAM, D_NOT_TEXT, now, out)
        return size
    return good


cdef inline void put_header(
    Relay *relay, const Rules *rules, size_t size, double now, Output *out
) noexcept nogil:
    """A frame of `size` bytes toward the client begins."""
    cdef uint8_t *header = out.own + out.own_used
    cdef size_t head = build_header(header, OP_TEXT if rules.raw_text else OP_BINARY, size)
    out.own_used += head
    relay.legs[UPSTREAM].wrapped += 1
    put(relay, rules, CLIENT, header, head, now, out)


# --- Facts -------------------------------------------------------------------------------------

cdef size_t relay_received(
    Relay *relay, const Rules *rules, int side, uint8_t *data, size_t size, double now, Output *out
) noexcept nogil:
    """`data` is the tail of the last call and what was read since; gives how much is consumed.

    What is left is to be given again: at once if `out.more`, else with the next bytes.
    """
    cdef Leg *leg = &relay.legs[side]
    cdef size_t used = size
    cdef double active_at
    cdef bint own
    out.more = 0
    leg.bytes_in += size - leg.cursor.tail
    leg.heard_at = now
    if relay.cause:
        received_while_ending(relay, rules, side, data, size, now, out)
    elif leg.close_received == NO_CLOSE:
        active_at = relay.active_at
        relay.active_at = now
        if leg.raw:
            used = wrap(relay, rules, data, size, now, out)
        else:
            used = walk(relay, rules, side, data, size, now, out, &own)
            if own:
                relay.active_at = active_at
    leg.cursor.tail = <uint32_t>(size - used)
    look_on(relay, rules, now)
    return used


cdef bint relay_peeked(
    Relay *relay, const Rules *rules, int side, const uint8_t *data, size_t size, uint64_t least
) noexcept nogil:
    """`data` stands at the front of the socket and stays there. True if it is the whole header of
    a data frame of `least` bytes or more that may pass: it is accounted for, and header and
    payload are to be spliced (or read) together. Otherwise nothing is changed: read it."""
    cdef Leg *leg = &relay.legs[side]
    cdef Cursor *cursor = &leg.cursor
    cdef size_t head
    cdef uint64_t length = 0
    cdef int wrong
    if (
        relay.cause or rules.raw or leg.close_received != NO_CLOSE or cursor.remaining
        or cursor.tail or not size or data[0] & 0x08
    ):
        return False
    wrong = look(relay, rules, side, data, size, &head, &length)
    if wrong:
        cursor.broken = 0                       # it will be, when it is read
        return False
    if not head or length < least:
        return False
    open_frame(relay, rules, side, data, head, length)
    cursor.header_left = <uint8_t>head
    return True


cdef void relay_spliced(
    Relay *relay, const Rules *rules, int side, size_t size, double now
) noexcept nogil:
    """`size` bytes of the frame under way (what is left of a peeked header, then payload) went past
    user space and are on their way: they count as queued for the other side until `relay_sent`."""
    cdef Leg *leg = &relay.legs[side]
    cdef Leg *other = &relay.legs[1 - side]
    cdef size_t head = size if size < leg.cursor.header_left else leg.cursor.header_left
    leg.bytes_in += size
    leg.spliced += size
    leg.heard_at = relay.active_at = now
    if not other.queued:
        other.taken_at = now
        if rules.write_timeout > 0:
            sooner(relay, now + rules.write_timeout)
    other.queued += size
    leg.cursor.header_left -= <uint8_t>head
    advance(relay, rules, &leg.cursor, size - head)
    look_on(relay, rules, now)


cdef void relay_wrapped(
    Relay *relay, const Rules *rules, size_t size, double now, Output *out
) noexcept nogil:
    """`size` bytes of a raw upstream went past user space, not text and before the relay has a
    cause: they are one frame. Its header is put here and leaves before them; they count as queued
    for the client until `relay_sent`."""
    cdef Leg *leg = &relay.legs[UPSTREAM]
    leg.bytes_in += size
    leg.spliced += size
    leg.heard_at = relay.active_at = now
    put_header(relay, rules, size, now, out)
    relay.legs[CLIENT].queued += size
    look_on(relay, rules, now)


cdef void relay_finished(
    Relay *relay, const Rules *rules, int side, double now, Output *out
) noexcept nogil:
    cdef Leg *leg = &relay.legs[side]
    cdef Leg *other = &relay.legs[1 - side]
    leg.finished = 1
    if relay.cause:
        if other.pending:
            raise_fate(other, RESET)
        if not leg.pending:
            raise_fate(leg, CLOSE)
    elif leg.close_received != NO_CLOSE:
        if side == UPSTREAM:
            raise_fate(other, FINISH)
    elif rules.raw:
        finished_raw(relay, rules, side, now, out)
    elif leg.cursor.remaining or leg.cursor.tail:
        end_with(relay, rules, C_CUT, side, D_FIN_IN_FRAME, now, out)
    else:
        finished_between_frames(relay, rules, side, now)
    look_on(relay, rules, now)


cdef void relay_truncated(
    Relay *relay, const Rules *rules, int side, double now, Output *out
) noexcept nogil:
    cdef Leg *leg = &relay.legs[side]
    if relay.cause or leg.close_received != NO_CLOSE:
        relay_finished(relay, rules, side, now, out)
        return
    leg.finished = 1
    end_with(relay, rules, C_TRUNCATED, side, D_TRUNCATED, now, out)
    look_on(relay, rules, now)


cdef void relay_lost(
    Relay *relay, const Rules *rules, int side, int detail, double now, Output *out
) noexcept nogil:
    cdef Leg *leg = &relay.legs[side]
    cdef Leg *other = &relay.legs[1 - side]
    leg.gone = 1
    leg.queued = leg.pending = leg.behind = 0
    if not relay.cause:
        end_with(relay, rules, C_LOST, side, detail, now, out)
    elif other.pending:
        raise_fate(other, RESET)
    out.count[side] = 0
    look_on(relay, rules, now)


cdef void relay_sent(
    Relay *relay, const Rules *rules, int side, size_t size, double now
) noexcept nogil:
    cdef Leg *leg = &relay.legs[side]
    leg.bytes_out += size
    leg.queued -= size
    leg.taken_at = now
    if leg.clogged and leg.queued <= rules.max_queue // 2:
        leg.clogged = 0
        relay.active_at = now                   # who was held back was not idle
        set_reading(relay, rules)
    if not relay_is_open(relay):
        look_on(relay, rules, now)


cdef void relay_acknowledged(
    Relay *relay, const Rules *rules, int side, uint64_t waiting, double now
) noexcept nogil:
    note_taken(&relay.legs[side], waiting, now)
    if not relay_is_open(relay):
        set_deadline(relay, rules, now)


cdef void relay_end(
    Relay *relay, const Rules *rules, int cause, double now, Output *out
) noexcept nogil:
    cdef int side
    cdef Leg *leg
    if cause == C_KILLED:
        if not relay.cause:
            end_with(relay, rules, cause, NO_SIDE, D_KILLED, now, out)
        elif relay.cause == C_DRAIN and (is_awaited(&relay.legs[0]) or is_awaited(&relay.legs[1])):
            relay.cause, relay.detail = C_KILLED, D_KILLED
        relay.limit_at = now
        for side in range(2):
            leg = &relay.legs[side]
            raise_fate(leg, RESET if leg.pending else CLOSE)
    elif relay_is_open(relay):
        end_with(relay, rules, cause, NO_SIDE, D_BY_ORDER, now, out)
    look_on(relay, rules, now)


cdef void relay_tick(Relay *relay, const Rules *rules, double now, Output *out) noexcept nogil:
    if relay.cause:
        tick_ending(relay, rules, now)
    elif relay.first == NO_SIDE and now >= relay.session_at:
        end_with(relay, rules, C_SESSION_TIMEOUT, NO_SIDE, D_SESSION, now, out)
    elif not is_stalled(relay, rules, now, out):
        if relay.first == NO_SIDE:
            tick_open(relay, rules, now, out)
        else:
            tick_closing(relay, rules, now, out)
    set_reading(relay, rules)
    set_deadline(relay, rules, now)


# --- Ends --------------------------------------------------------------------------------------

cdef void received_while_ending(
    Relay *relay, const Rules *rules, int side, uint8_t *data, size_t size, double now, Output *out
) noexcept nogil:
    """Thrown away, but for the rest of a frame behind which a farewell waits."""
    cdef Leg *other = &relay.legs[1 - side]
    cdef Cursor *cursor = &relay.legs[side].cursor
    cdef size_t head
    cdef int wrong
    if not other.pending:
        return
    if size > cursor.header_left + cursor.remaining:
        size = cursor.header_left + cursor.remaining
    if rules.raw:
        wrong = pass_payload(relay, rules, data, size, now, out, True)
    else:
        queue_up(other, out, 1 - side, data, size, now)
        wrong = 0
    head = size if size < cursor.header_left else cursor.header_left
    cursor.header_left -= <uint8_t>head
    if not wrong:
        wrong = advance(relay, rules, cursor, size - head)
    if wrong:
        raise_fate(other, RESET)
        out.count[1 - side] = 0
        return
    if not cursor.remaining:
        other.pending = 0
        relay.since = now                       # the time for last words begins with ours
        say(relay, rules, 1 - side, other.pending_code, other.pending_reason, now, out)


cdef void on_close(
    Relay *relay, const Rules *rules, int side, uint32_t code, uint8_t *frame, size_t size,
    double now, Output *out
) noexcept nogil:
    """A valid Close came from this side."""
    cdef int cause
    cdef Leg *leg = &relay.legs[side]
    cdef Leg *other = &relay.legs[1 - side]
    leg.close_received = <int32_t>code
    if other.raw:
        settle(relay, rules, C_CLOSED, side, D_NONE, now)
        say(relay, rules, side, <int32_t>code, R_NONE, now, out)
        raise_fate(other, FINISH)
        return
    if other.fate == OPEN and not other.gone:
        put(relay, rules, 1 - side, frame, size, now, out)
        other.close_sent = <int32_t>code
    if other.close_received != NO_CLOSE or other.finished:
        cause = C_CLOSED if other.close_received != NO_CLOSE else C_FINISHED
        settle(relay, rules, cause, relay.first, D_NONE, now)
        after_farewell(relay, CLIENT)
        after_farewell(relay, UPSTREAM)
    elif relay.first == NO_SIDE:
        relay.first = <uint8_t>side
        relay.since = now


cdef void finished_raw(
    Relay *relay, const Rules *rules, int side, double now, Output *out
) noexcept nogil:
    """FIN without Close where the upstream is raw."""
    cdef int cause
    cdef Cursor *cursor = &relay.legs[side].cursor
    if side == CLIENT:
        cause = C_CUT if cursor.remaining or cursor.tail else C_FINISHED
        settle(relay, rules, cause, side, D_FIN_NO_CLOSE, now)
        raise_fate(&relay.legs[UPSTREAM], RESET)
        out.count[UPSTREAM] = 0
        raise_fate(&relay.legs[CLIENT], CLOSE)
    elif rules.raw_text and cursor.tail:
        end_with(relay, rules, C_TEXT, side, D_STREAM_END, now, out)
    else:
        settle(relay, rules, C_FINISHED, side, D_NONE, now)
        bid(relay, rules, CLIENT, 1000, R_NONE, now, out)
        bid(relay, rules, UPSTREAM, FIN_ONLY, R_NONE, now, out)


cdef void finished_between_frames(
    Relay *relay, const Rules *rules, int side, double now
) noexcept nogil:
    """FIN without Close: passed on, and what the other still says is delivered."""
    cdef int blamed
    cdef Leg *other = &relay.legs[1 - side]
    raise_fate(other, FINISH)
    if relay.first == NO_SIDE:
        relay.first = <uint8_t>side
        relay.since = now
    if other.finished or other.close_received != NO_CLOSE:
        blamed = relay.first if other.close_received == NO_CLOSE else side
        settle(relay, rules, C_FINISHED, blamed, D_FIN_NO_CLOSE, now)
        after_farewell(relay, CLIENT)
        after_farewell(relay, UPSTREAM)


cdef inline void sooner(Relay *relay, double at) noexcept nogil:
    if at < relay.deadline:
        relay.deadline = at


cdef inline double patience(const Rules *rules) noexcept nogil:
    return rules.write_timeout if rules.write_timeout > 0 else rules.close_timeout


cdef void unanswered(Relay *relay, const Rules *rules, double now, Output *out) noexcept nogil:
    """A Close or a FIN was not answered in time."""
    cdef Leg *first = &relay.legs[relay.first]
    cdef Leg *other = &relay.legs[1 - relay.first]
    if first.close_received != NO_CLOSE:
        end_with(relay, rules, C_UNANSWERED, 1 - relay.first, D_NO_ANSWER, now, out)
    else:
        settle(relay, rules, C_FINISHED, relay.first, D_NO_FINISH, now)
        give_up(other)
        raise_fate(first, RESET if other.cursor.remaining else CLOSE)


cdef void settle(
    Relay *relay, const Rules *rules, int cause, int side, int detail, double now
) noexcept nogil:
    """The cause is settled; from here on the relay is ending."""
    relay.cause = <uint8_t>cause
    relay.side = <uint8_t>side
    relay.detail = <uint8_t>detail
    relay.since = now
    relay.limit_at = max(relay.limit_at, now + patience(rules))


cdef void end_with(
    Relay *relay, const Rules *rules, int cause, int side, int detail, double now, Output *out
) noexcept nogil:
    """Settle the cause and tell both sides, by the table of ends (gateway.relaying.FAREWELLS)."""
    cdef Leg *offender
    cdef Leg *other
    cdef int code
    settle(relay, rules, cause, side, detail, now)
    if side == NO_SIDE:
        end_by_order(relay, rules, cause, now, out)
        return
    offender, other = &relay.legs[side], &relay.legs[1 - side]
    if cause in (C_LOST, C_SILENT, C_STALLED, C_UNANSWERED):
        give_up(offender)
        code = 0
    elif cause == C_CUT or cause == C_TRUNCATED:
        code = FIN_ONLY                         # it has finished: at most a frame is under way
    elif cause == C_FRAMING:
        code = 1002
    elif cause == C_TEXT:
        code = 1007
    elif cause == C_TOO_BIG:
        code = 1009
    else:
        code = 1008
    if other.raw:
        raise_fate(other, RESET)
    elif side == CLIENT:
        bid(relay, rules, UPSTREAM, 1001, R_CLIENT_FAILED, now, out)
    else:
        bid(relay, rules, CLIENT, 1014, R_UPSTREAM_FAILED, now, out)
    if code:
        if offender.raw:
            raise_fate(offender, RESET)
        else:
            bid(relay, rules, side, code, R_DETAIL, now, out)


cdef void end_by_order(
    Relay *relay, const Rules *rules, int cause, double now, Output *out
) noexcept nogil:
    """Nobody's fault: the gateway's own order or the route's."""
    cdef int code = 1001, reason = R_IDLE
    if cause == C_SESSION_TIMEOUT:
        code, reason = rules.session_code, R_SESSION
    elif cause == C_DRAIN or cause == C_KILLED or cause == C_DISMISSED:
        code, reason = rules.drain_code, R_DRAIN
    elif cause == C_POLICY:
        code, reason = 1008, R_POLICY
    bid(relay, rules, CLIENT, code, reason, now, out)
    bid(relay, rules, UPSTREAM, FIN_ONLY if relay.legs[UPSTREAM].raw else 1001, reason, now, out)


cdef void bid(
    Relay *relay, const Rules *rules, int side, int code, int reason, double now, Output *out
) noexcept nogil:
    """Say farewell now, or at the end of the frame under way, or never if that is cut."""
    cdef Leg *leg = &relay.legs[side]
    cdef Leg *source = &relay.legs[1 - side]
    if leg.gone or leg.fate >= CLOSE:
        return
    if not source.cursor.remaining:
        say(relay, rules, side, code, reason, now, out)
        return
    leg.pending = 1
    leg.pending_code = code
    leg.pending_reason = <uint8_t>reason
    if source.cursor.broken or source.finished or source.gone or source.fate >= CLOSE:
        raise_fate(leg, RESET)
        out.count[side] = 0


cdef void say(
    Relay *relay, const Rules *rules, int side, int code, int reason, double now, Output *out
) noexcept nogil:
    """Put the farewell behind what is queued. Toward raw bytes it is FIN alone."""
    cdef Leg *leg = &relay.legs[side]
    cdef uint8_t payload[2 + 160]
    cdef size_t size = 0, whole
    cdef uint8_t *frame
    if code != FIN_ONLY and leg.close_sent == NO_CLOSE and leg.fate == OPEN:
        if code != 1005:
            payload[0] = <uint8_t>(code >> 8)
            payload[1] = <uint8_t>code
            size = 2 + reason_text(relay, rules, reason, <char *>payload + 2)
        frame = own_frame(out, side, OP_CLOSE, payload, size, &whole)
        queue_up(leg, out, side, frame, whole, now)
        leg.close_sent = code
    after_farewell(relay, side)


cdef size_t reason_text(
    const Relay *relay, const Rules *rules, int reason, char *into
) noexcept nogil:
    """A reason of 123 bytes at most, into 160 bytes; gives its size."""
    cdef const char *text = b""
    if reason == R_DETAIL:
        snprintf(
            into, 160, sentence(relay.detail),
            <unsigned long long>relay.detail_size, <unsigned long long>relay.detail_limit,
        )
        return strlen(into)
    if reason == R_DRAIN:
        memcpy(into, rules.drain_reason, rules.drain_reason_size)
        return rules.drain_reason_size
    if reason == R_UPSTREAM_FAILED:
        text = b"upstream failed"
    elif reason == R_CLIENT_FAILED:
        text = b"client failed"
    elif reason == R_IDLE:
        text = b"idle timeout"
    elif reason == R_SESSION:
        text = b"session timeout"
    elif reason == R_POLICY:
        text = b"policy"
    memcpy(into, text, strlen(text))
    return strlen(text)


cdef void after_farewell(Relay *relay, int side) noexcept nogil:
    """Half-close toward the client and linger; let a `ws` upstream close first (7.1.1)."""
    cdef Leg *leg = &relay.legs[side]
    if leg.finished:
        raise_fate(leg, CLOSE)
    elif side == CLIENT or leg.raw:
        raise_fate(leg, FINISH)


# --- Time and back-pressure --------------------------------------------------------------------

cdef void set_reading(Relay *relay, const Rules *rules) noexcept nogil:
    """Back-pressure crosses the relay; what is only thrown away is always read."""
    cdef int side
    cdef Leg *leg
    cdef Leg *other
    for side in range(2):
        if relay.legs[side].queued >= rules.max_queue:
            relay.legs[side].clogged = 1
    for side in range(2):
        leg, other = &relay.legs[side], &relay.legs[1 - side]
        if leg.gone or leg.finished or leg.fate >= CLOSE:
            leg.reading = 0
        elif (relay.cause and not other.pending) or leg.close_received != NO_CLOSE:
            leg.reading = 1
        else:
            leg.reading = not (other.clogged or (other.raw and leg.clogged))


cdef inline void look_on(Relay *relay, const Rules *rules, double now) noexcept nogil:
    """After a fact: who is to be read, and, unless the relay is open, what is due when."""
    cdef Leg *other
    set_reading(relay, rules)
    if relay_is_open(relay):
        return
    if relay.first != NO_SIDE and not relay.cause:
        other = &relay.legs[1 - relay.first]
        if not other.reading:
            relay.held_at = min(relay.held_at, now)
        elif relay.held_at < INFINITY:
            relay.since = max(relay.since, other.taken_at) + now - relay.held_at
            relay.held_at = INFINITY
    set_deadline(relay, rules, now)


cdef bint is_stalled(Relay *relay, const Rules *rules, double now, Output *out) noexcept nogil:
    """End it if a side has taken nothing of what waits for it."""
    cdef int side, detail = D_STALLED if rules.write_timeout > 0 else D_STALLED_ENDING
    for side in range(2):
        if now >= stalled_at(relay, rules, side):
            end_with(relay, rules, C_STALLED, side, detail, now, out)
            return True
    return False


cdef void tick_closing(Relay *relay, const Rules *rules, double now, Output *out) noexcept nogil:
    """The answer to the first Close or FIN is awaited."""
    if now >= answer_at(relay, rules):
        unanswered(relay, rules, now, out)
    elif now >= relay.limit_at:
        end_with(relay, rules, C_SESSION_TIMEOUT, NO_SIDE, D_SESSION, now, out)


cdef void tick_ending(Relay *relay, const Rules *rules, double now) noexcept nogil:
    """Give up the legs whose time is over."""
    cdef int side
    cdef bint due[2]
    cdef Leg *leg
    for side in range(2):
        due[side] = now >= relay.limit_at or now >= leg_at(relay, rules, side)
    for side in range(2):
        leg = &relay.legs[side]
        if due[side]:
            raise_fate(leg, RESET if leg.queued or leg.pending else CLOSE)
            if relay.legs[1 - side].pending:
                raise_fate(&relay.legs[1 - side], RESET)


cdef void tick_open(Relay *relay, const Rules *rules, double now, Output *out) noexcept nogil:
    """Idle, silent; heartbeats."""
    cdef int side
    if rules.idle_timeout > 0 and now >= relay.active_at + rules.idle_timeout:
        if not relay.legs[CLIENT].queued and not relay.legs[UPSTREAM].queued:
            end_with(relay, rules, C_IDLE, NO_SIDE, D_IDLE, now, out)
            return
        relay.active_at = now                   # a slow side is not idle: see write_timeout
    if rules.heartbeat > 0:
        for side in range(2):
            if not relay.legs[side].raw and is_silent(relay, rules, side, now, out):
                end_with(relay, rules, C_SILENT, side, D_SILENT, now, out)
                return


cdef bint is_silent(
    Relay *relay, const Rules *rules, int side, double now, Output *out
) noexcept nogil:
    """Ping a leg that is quiet; True if it gave no sign of life after that."""
    cdef Leg *leg = &relay.legs[side]
    cdef int found = heartbeat_look(leg, rules, now)
    cdef uint8_t *frame
    cdef size_t whole
    if found == QUIET and not relay.legs[1 - side].cursor.remaining:
        if leg.pings_sent:
            leg.ping_payload[PING_PAYLOAD - 1] += 1
        else:
            random_bytes(leg.ping_payload, PING_PAYLOAD)
        frame = own_frame(out, side, OP_PING, leg.ping_payload, PING_PAYLOAD, &whole)
        note_ping(leg, whole, now)
        put(relay, rules, side, frame, whole, now, out)
    return found == SILENT


cdef double stalled_at(const Relay *relay, const Rules *rules, int side) noexcept nogil:
    """When a side is given up unless it takes a byte."""
    cdef const Leg *leg = &relay.legs[side]
    if not leg.queued:
        return INFINITY
    if rules.write_timeout > 0:
        return leg.taken_at + rules.write_timeout
    if relay_is_open(relay):
        return INFINITY
    return max(leg.taken_at, relay.since) + rules.close_timeout


cdef double answer_at(const Relay *relay, const Rules *rules) noexcept nogil:
    """When the answer to the first Close or FIN is overdue."""
    cdef const Leg *other = &relay.legs[1 - relay.first]
    if other.queued or not other.reading:
        return INFINITY
    return max(other.taken_at, relay.since) + rules.close_timeout


cdef double leg_at(const Relay *relay, const Rules *rules, int side) noexcept nogil:
    """When a leg is given up while ending."""
    cdef const Leg *leg = &relay.legs[side]
    if leg_is_done(leg):
        return INFINITY
    if leg.queued:
        return stalled_at(relay, rules, side)
    if not leg.pending and relay.legs[1 - side].pending:
        return INFINITY
    return max(leg.taken_at, relay.since) + rules.close_timeout


cdef void set_deadline(Relay *relay, const Rules *rules, double now) noexcept nogil:
    """The earliest time at which `relay_tick` may have something to do."""
    cdef int side
    if relay.cause:
        relay.deadline = INFINITY
        if not relay_is_over(relay):
            relay.deadline = min(relay.limit_at, leg_at(relay, rules, 0), leg_at(relay, rules, 1))
        return
    relay.deadline = min(stalled_at(relay, rules, 0), stalled_at(relay, rules, 1))
    if relay.first != NO_SIDE:
        sooner(relay, answer_at(relay, rules))
        sooner(relay, relay.limit_at)
    else:
        sooner(relay, relay.session_at)
        if rules.idle_timeout > 0:
            sooner(relay, relay.active_at + rules.idle_timeout)
        if rules.heartbeat > 0:
            for side in range(2):
                if not relay.legs[side].raw:
                    sooner(relay, heartbeat_at(&relay.legs[side], rules, PING_RETRY, now))


def sizes() -> dict[str, int]:
    """Bytes of the structs, for the pages on memory and their tests."""
    return {"Relay": sizeof(Relay), "Rules": sizeof(Rules), "Output": sizeof(Output)}
