"""Frame headers in C: check them, step over them, build them; what gateway/frames.py says.

Inline, for relay.pyx, where the rest of the walk is. A header costs no call.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from gateway.engine.codes cimport *
from gateway.engine.relay cimport CLIENT, Cursor, Relay, Rules


cdef inline int broken(
    Relay *relay, Cursor *cursor, int cause, int detail, uint64_t size, uint64_t limit
) noexcept nogil:
    """Note what is wrong; the caller ends the relay with it."""
    cursor.broken = 1
    relay.detail_size = size
    relay.detail_limit = limit
    return cause | (detail << 8)


cdef inline int look(
    Relay *relay, const Rules *rules, int side, const uint8_t *data, size_t have, size_t *size,
    uint64_t *length
) noexcept nogil:
    """Check the header at `data` as far as it has come. Gives 0, or a cause and a detail.

    *size is 0 while the header is not whole.
    """
    cdef Cursor *cursor = &relay.legs[side].cursor
    cdef uint8_t first = data[0], second
    cdef int opcode = first & 0x0F
    cdef uint8_t reserved = first & 0x70
    cdef size_t wide, i
    cdef uint64_t value
    size[0] = 0
    if reserved and not (
        reserved == 0x40 and rules.deflate and (opcode == OP_TEXT or opcode == OP_BINARY)
    ):
        return broken(relay, cursor, C_FRAMING, D_RESERVED, 0, 0)
    if opcode > OP_PONG or OP_BINARY < opcode < OP_CLOSE:
        return broken(relay, cursor, C_FRAMING, D_OPCODE, opcode, 0)
    if opcode >= OP_CLOSE:
        if not first & 0x80:
            return broken(relay, cursor, C_FRAMING, D_CONTROL_FRAGMENT, 0, 0)
    elif opcode == 0:
        if not cursor.fragmented:
            return broken(relay, cursor, C_FRAMING, D_CONTINUATION, 0, 0)
    elif cursor.fragmented:
        return broken(relay, cursor, C_FRAMING, D_INTERLEAVED, 0, 0)
    if have < 2:
        return 0
    second = data[1]
    if (second & 0x80 != 0) != (side == CLIENT):
        return broken(relay, cursor, C_FRAMING, D_UNMASKED if side == CLIENT else D_MASKED, 0, 0)
    value = second & 0x7F
    wide = 0
    if value > CONTROL_MAX:
        if opcode >= OP_CLOSE:
            return broken(relay, cursor, C_FRAMING, D_CONTROL_SIZE, 0, 0)
        wide = 2 if value == 126 else 8
        if have < 2 + wide:
            return 0
        value = 0
        for i in range(wide):
            value = value << 8 | data[2 + i]
        if value >> 63:
            return broken(relay, cursor, C_FRAMING, D_LENGTH_SIGN, 0, 0)
        if value <= CONTROL_MAX or (wide == 8 and value < 65536):
            return broken(relay, cursor, C_FRAMING, D_LENGTH_FORM, 0, 0)
    length[0] = value
    if opcode < OP_CLOSE:
        if rules.max_frame and value > rules.max_frame:
            return broken(relay, cursor, C_TOO_BIG, D_FRAME_SIZE, value, rules.max_frame)
        if opcode == 0:
            value += cursor.message_size
        if rules.max_message and value > rules.max_message:
            return broken(relay, cursor, C_TOO_BIG, D_MESSAGE_SIZE, value, rules.max_message)
    elif opcode == OP_CLOSE and value == 1:
        return broken(relay, cursor, C_FRAMING, D_CLOSE_ONE, 0, 0)
    wide += 2 + (4 if side == CLIENT else 0)
    if have >= wide:
        size[0] = wide
    return 0


cdef inline int advance(
    Relay *relay, const Rules *rules, Cursor *cursor, uint64_t count
) noexcept nogil:
    """`count` payload bytes of the frame under way are walked."""
    cursor.remaining -= count
    cursor.payload += count
    if not cursor.remaining and cursor.final:
        cursor.fragmented = 0
        cursor.messages += 1
        if rules.raw and cursor.opcode_is_text and cursor.utf8.need:
            return broken(relay, cursor, C_TEXT, D_TEXT_END, 0, 0)
    return 0


cdef inline int open_frame(
    Relay *relay, const Rules *rules, int side, const uint8_t *data, size_t size, uint64_t length
) noexcept nogil:
    """A checked data frame begins."""
    cdef Cursor *cursor = &relay.legs[side].cursor
    cdef int opcode = data[0] & 0x0F
    cursor.frames += 1
    if opcode:
        cursor.message_size = 0
        cursor.opcode_is_text = opcode == OP_TEXT
    cursor.message_size += length
    cursor.final = data[0] >> 7
    cursor.fragmented = 1
    cursor.remaining = cursor.frame_size = length
    if rules.raw:
        memcpy(cursor.mask, data + size - 4, 4)
        cursor.mask_at = 0
    if not length:
        return advance(relay, rules, cursor, 0)
    return 0


cdef inline size_t build_header(uint8_t *header, int opcode, uint64_t size) noexcept nogil:
    """The header of a whole, unmasked message, in at most 10 bytes; gives its size."""
    cdef int i
    header[0] = <uint8_t>(0x80 | opcode)
    if size <= CONTROL_MAX:
        header[1] = <uint8_t>size
        return 2
    if size < 65536:
        header[1] = 126
        header[2] = <uint8_t>(size >> 8)
        header[3] = <uint8_t>size
        return 4
    header[1] = 127
    for i in range(8):
        header[2 + i] = <uint8_t>(size >> (56 - 8 * i))
    return 10
