"""What touches payloads, in C: masks, and UTF-8 to the byte. Pure functions, for relay.pyx."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef struct Utf8:
    # Where a walk stands inside a character; all zero between two.
    uint8_t need                # continuation bytes still to come
    uint8_t low                 # what the next of them may be
    uint8_t high

cdef inline void unmask(uint8_t *data, size_t size, const uint8_t *mask, int at) noexcept nogil:
    """XOR in place; `at` is the mask's byte that meets the first one. By words of 8."""
    cdef uint8_t turned[8]
    cdef uint64_t word, piece
    cdef size_t i
    for i in range(8):
        turned[i] = mask[(at + i) & 3]
    memcpy(&word, turned, 8)
    i = 0
    while i + 8 <= size:
        memcpy(&piece, data + i, 8)
        piece ^= word
        memcpy(data + i, &piece, 8)
        i += 8
    while i < size:
        data[i] ^= turned[i & 7]
        i += 1


cdef inline bint may_be_sent(uint32_t code) noexcept nogil:
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


cdef inline size_t utf8_walk(Utf8 *state, const uint8_t *data, size_t size) noexcept nogil:
    """How many bytes come before the first that cannot be UTF-8 where it stands (RFC 3629 4)."""
    cdef size_t i = 0
    cdef uint64_t piece
    cdef uint8_t byte
    while i < size:
        if state.need == 0:
            while i + 8 <= size:
                memcpy(&piece, data + i, 8)
                if piece & <uint64_t>0x8080808080808080:
                    break
                i += 8
            if i >= size:
                return size
        byte = data[i]
        if state.need:
            if byte < state.low or byte > state.high:
                return i
            state.need -= 1
            state.low, state.high = 0x80, 0xBF
        elif byte >= 0x80:
            state.low, state.high = 0x80, 0xBF
            if 0xC2 <= byte <= 0xDF:
                state.need = 1
            elif 0xE0 <= byte <= 0xEF:
                state.need = 2
                if byte == 0xE0:
                    state.low = 0xA0
                elif byte == 0xED:
                    state.high = 0x9F
            elif 0xF0 <= byte <= 0xF4:
                state.need = 3
                if byte == 0xF0:
                    state.low = 0x90
                elif byte == 0xF4:
                    state.high = 0x8F
            else:
                return i
        i += 1
    return size


cdef inline bint is_utf8(const uint8_t *data, size_t size) noexcept nogil:
    cdef Utf8 fresh
    fresh.need = 0
    return utf8_walk(&fresh, data, size) == size and fresh.need == 0
