"""Numbers for what has a name in Python: opcodes, causes, sentences, reasons. For relay.pyx."""

cdef enum:
    # Opcodes (RFC 6455 5.2).
    OP_TEXT = 1
    OP_BINARY = 2
    OP_CLOSE = 8
    OP_PING = 9
    OP_PONG = 10
    CONTROL_MAX = 125

# Causes: their places in gateway.events.Cause, from 1.
cdef enum:
    C_CLOSED = 1
    C_FINISHED = 2
    C_CUT = 3
    C_LOST = 4
    C_SILENT = 5
    C_STALLED = 6
    C_UNANSWERED = 7
    C_FRAMING = 8
    C_TEXT = 9
    C_TOO_BIG = 10
    C_POLICY = 11
    C_IDLE = 12
    C_SESSION_TIMEOUT = 13
    C_DRAIN = 14
    C_KILLED = 15               # KILLED in relay.pxd
    C_DISMISSED = 16
    C_TRUNCATED = 17

# Details: sentences for the record, in relay.pyx. Those from D_FAULT (relay.pxd) on are a fault's.
cdef enum:
    D_UNMASKED = 1
    D_MASKED
    D_CONTROL_SIZE
    D_LENGTH_SIGN
    D_LENGTH_FORM
    D_CLOSE_ONE
    D_RESERVED
    D_OPCODE
    D_CONTROL_FRAGMENT
    D_CONTINUATION
    D_INTERLEAVED
    D_FRAME_SIZE
    D_MESSAGE_SIZE
    D_TEXT_END
    D_TEXT
    D_CLOSE_CODE
    D_CLOSE_REASON
    D_FIN_IN_FRAME
    D_FIN_NO_CLOSE
    D_STREAM_END
    D_NOT_TEXT
    D_NO_ANSWER
    D_NO_FINISH
    D_STALLED
    D_STALLED_ENDING
    D_SILENT
    D_IDLE
    D_SESSION
    D_KILLED
    D_BY_ORDER
    D_TRUNCATED
    D_COUNT

# Reasons of farewells: what a leg is told beside the code.
cdef enum:
    R_NONE = 0
    R_DETAIL                    # the detail's sentence, to who is to blame
    R_UPSTREAM_FAILED
    R_CLIENT_FAILED
    R_IDLE
    R_SESSION
    R_DRAIN
    R_POLICY

cdef inline const char *sentence(int detail) noexcept nogil:
    """The detail's sentence, for printf: some have one number, some two."""
    if detail == D_UNMASKED:
        return b"unmasked frame from a client (RFC 6455 5.1)"
    if detail == D_MASKED:
        return b"masked frame from a server (RFC 6455 5.1)"
    if detail == D_CONTROL_SIZE:
        return b"control frame over 125 bytes (RFC 6455 5.5)"
    if detail == D_LENGTH_SIGN:
        return b"length with its highest bit set (RFC 6455 5.2)"
    if detail == D_LENGTH_FORM:
        return b"length not in its shortest form (RFC 6455 5.2)"
    if detail == D_CLOSE_ONE:
        return b"Close with one byte of payload (RFC 6455 5.5.1)"
    if detail == D_RESERVED:
        return b"reserved bit set (RFC 6455 5.2)"
    if detail == D_OPCODE:
        return b"unknown opcode 0x%llx (RFC 6455 5.2)"
    if detail == D_CONTROL_FRAGMENT:
        return b"fragmented control frame (RFC 6455 5.5)"
    if detail == D_CONTINUATION:
        return b"continuation of no message (RFC 6455 5.4)"
    if detail == D_INTERLEAVED:
        return b"new message inside a fragmented one (RFC 6455 5.4)"
    if detail == D_FRAME_SIZE:
        return b"frame of %llu bytes, limit %llu"
    if detail == D_MESSAGE_SIZE:
        return b"message of %llu bytes, limit %llu"
    if detail == D_TEXT_END:
        return b"text message ends inside a character (RFC 6455 8.1)"
    if detail == D_TEXT:
        return b"text that is not UTF-8 (RFC 6455 8.1)"
    if detail == D_CLOSE_CODE:
        return b"close code %llu may not be sent (RFC 6455 7.4)"
    if detail == D_CLOSE_REASON:
        return b"close reason is not UTF-8 (RFC 6455 5.5.1)"
    if detail == D_FIN_IN_FRAME:
        return b"FIN inside a frame"
    if detail == D_FIN_NO_CLOSE:
        return b"FIN without Close"
    if detail == D_STREAM_END:
        return b"the stream ends inside a character"
    if detail == D_NOT_TEXT:
        return b"bytes that are not UTF-8"
    if detail == D_NO_ANSWER:
        return b"Close was not answered"
    if detail == D_NO_FINISH:
        return b"the other side did not finish in time"
    if detail == D_STALLED:
        return b"write_timeout: it took no byte"
    if detail == D_STALLED_ENDING:
        return b"close_timeout: it took no byte"
    if detail == D_SILENT:
        return b"no sign of life after a ping"
    if detail == D_IDLE:
        return b"idle_timeout"
    if detail == D_SESSION:
        return b"session_timeout"
    if detail == D_KILLED:
        return b"ended at once"
    if detail == D_TRUNCATED:
        return b"FIN without close_notify (RFC 8446 6.1)"
    return b""
