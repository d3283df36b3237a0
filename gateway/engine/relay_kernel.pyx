# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""How a compiled relay's legs are carried whose TLS is the kernel's: as plain ones, but for this.

The kernel seals what is sent and opens what is read, spliced or not. What it leaves to us are
records that are no data. Facts (Documentation/networking/tls.rst, and tests/ktls):

- Such a record is EIO to recv, EINVAL to splice, and stays until somebody asks for its type.
- close_notify is not the kernel's to say, and goes before the FIN as a record of its own; FIN alone
  is a truncated stream here too.
- A server says tickets whenever it likes (RFC 8446 4.6.1): nobody here has use for them.
- Behind a KeyUpdate all is sealed by new keys (RFC 8446 4.6.3). Linux 6.14 takes them; before that
  the side is lost, and the record says by what.
- What cannot be opened is EBADMSG, a header that is none EMSGSIZE or EINVAL; each is told once.

Must never: read more than one record of what is no data before its keys are looked after.
"""

from libc.errno cimport EAGAIN, EINTR, EINVAL, EIO, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from gateway.engine.linux cimport (
    CMSG_DATA,
    CMSG_FIRSTHDR,
    CMSG_LEN,
    MSG_NOSIGNAL,
    cmsghdr,
    iovec,
    msghdr,
    recvmsg,
    sendmsg,
)
from gateway.engine.relay_carriage cimport HOT
from gateway.engine.relay_slots cimport Far, Slot

from gateway.engine import ktls_handover
from gateway.engine.relay_report import FAULTS
from gateway.errors import Fault

cdef extern from "<errno.h>" nogil:
    enum:
        EBADMSG
        EMSGSIZE

cdef enum:
    SOL_TLS = 282               # include/uapi/linux/tls.h
    SET_RECORD_TYPE = 1
    GET_RECORD_TYPE = 2

    ALERT = 21                  # types of records, RFC 8446 5.1
    HANDSHAKE = 22
    WARNING = 1                 # RFC 8446 6
    CLOSE_NOTIFY = 0
    NEW_SESSION_TICKET = 4      # messages, RFC 8446 4
    KEY_UPDATE = 24

    # What a record came to.
    IS_NONE = 0                 # there was no record
    IS_NOTHING = 1              # nobody here has use for it
    IS_CLOSE = 2
    IS_KEYS = 3                 # KeyUpdate
    IS_KEYS_ASKED = 4           # and ours is asked for
    IS_FATAL = 5

cdef uint8_t TLS_FAULT = 1 + FAULTS.index(Fault.TLS)
cdef uint8_t KEYS_FAULT = 1 + FAULTS.index(Fault.TLS_KEYS)


cdef struct Control:
    # Room for one control message with one byte in it, as CMSG_SPACE(1).
    cmsghdr head
    uint8_t kind
    uint8_t fill[7]


cdef int say_close(int fd) noexcept nogil:
    """Send close_notify; 0, or the number of an error."""
    cdef uint8_t alert[2]
    cdef Control control
    cdef iovec piece
    cdef msghdr message
    alert[0], alert[1] = WARNING, CLOSE_NOTIFY
    piece.iov_base, piece.iov_len = alert, 2
    memset(&message, 0, sizeof(message))
    message.msg_iov, message.msg_iovlen = &piece, 1
    message.msg_control, message.msg_controllen = &control, sizeof(control)
    control.head.cmsg_len = CMSG_LEN(1)
    control.head.cmsg_level, control.head.cmsg_type = SOL_TLS, SET_RECORD_TYPE
    control.kind = ALERT
    return 0 if sendmsg(fd, &message, MSG_NOSIGNAL) == 2 else errno


cdef int hear(int fd, uint8_t *room, size_t size) noexcept nogil:
    """Take the record that is no data, and say what it came to."""
    cdef Control control
    cdef iovec piece
    cdef msghdr message
    cdef cmsghdr *head
    cdef ssize_t count
    piece.iov_base, piece.iov_len = room, size
    memset(&message, 0, sizeof(message))
    message.msg_iov, message.msg_iovlen = &piece, 1
    message.msg_control, message.msg_controllen = &control, sizeof(control)
    count = recvmsg(fd, &message, 0)
    if count < 0:
        return IS_NONE if errno == EAGAIN or errno == EINTR else IS_FATAL
    head = CMSG_FIRSTHDR(&message)
    if head == NULL or head.cmsg_level != SOL_TLS or head.cmsg_type != GET_RECORD_TYPE:
        return IS_FATAL
    if CMSG_DATA(head)[0] == ALERT and count == 2:
        if room[1] == CLOSE_NOTIFY:
            return IS_CLOSE
        return IS_NOTHING if room[0] == WARNING else IS_FATAL
    return heard_handshake(room, count) if CMSG_DATA(head)[0] == HANDSHAKE else IS_FATAL


cdef int heard_handshake(const uint8_t *at, ssize_t left) noexcept nogil:
    """Messages behind the handshake: tickets, or a KeyUpdate as the last of its keys."""
    cdef ssize_t size
    while left >= 4:
        size = <ssize_t>at[1] << 16 | <ssize_t>at[2] << 8 | at[3]
        if at[0] == KEY_UPDATE and size == 1 and left == 5:
            return IS_KEYS_ASKED if at[4] else IS_KEYS
        if at[0] != NEW_SESSION_TICKET or size > left - 4:
            return IS_FATAL
        at += 4 + size
        left -= 4 + size
    return IS_FATAL if left else IS_NOTHING


cdef class KernelCarriage(SealedCarriage):
    """The part of `RelayLoop` that has to do with the kernel's TLS."""

    def __cinit__(self, *_subclass, **_named):
        self._keys = {}

    cdef int take_kernel_leg(self, Slot *slot, int side, object leg) except -1:
        """This side's TLS is the kernel's; `leg` is a `ktls_handover.KernelLeg`."""
        slot.far[side].kernel = 1
        if leg.ours:
            self._keys[slot.index, side] = leg
        return 0

    cdef int drop_keys(self, uint32_t index) except -1:
        """This relay is over."""
        if self._keys:
            for side in range(2):
                self._keys.pop((index, side), None)
        return 0

    cdef bint heard(self, Slot *slot, int side, int number) noexcept nogil:
        cdef Far *far = &slot.far[side]
        cdef int said
        if number == EBADMSG or number == EMSGSIZE:
            far.fault = TLS_FAULT
            return False
        if number != EIO and number != EINVAL:
            return False
        self.calls += 1
        said = hear(far.fd, self._hot, HOT)
        if said == IS_NONE and number == EINVAL:
            said = IS_FATAL                     # so it was the stream's, and is told only once
        if said == IS_CLOSE:
            self._end_sealed(slot, side, True)
        elif said == IS_NONE or said == IS_NOTHING:
            far.again = 1
        elif said == IS_FATAL:
            far.fault = TLS_FAULT
            return False
        elif not self._follow(slot, side, said == IS_KEYS_ASKED):
            far.fault = KEYS_FAULT
            return False
        return True

    cdef bint _follow(self, Slot *slot, int side, bint asked) noexcept nogil:
        """Give the kernel the keys that a KeyUpdate has announced."""
        cdef int fd = slot.far[side].fd
        slot.far[side].again = 1
        with gil:
            leg = self._keys.get((slot.index, side))
            return leg is not None and ktls_handover.follow(fd, leg, asked)

    cdef void end_of(self, Slot *slot, int side) noexcept nogil:
        if slot.far[side].kernel:
            self._end_sealed(slot, side, False)
        else:
            SealedCarriage.end_of(self, slot, side)

    cdef bint notify(self, Slot *slot, int side) noexcept nogil:
        cdef Far *far = &slot.far[side]
        cdef int number
        if not far.kernel:
            return SealedCarriage.notify(self, slot, side)
        if far.notified or far.fault:
            return not far.fault
        self.calls += 1
        number = say_close(far.fd)
        if number == 0:
            far.notified = 1
        elif number == EAGAIN or number == EINTR:
            far.blocked = 1
            far.again = far.again or number == EINTR
        else:
            self._send_failed(slot, side, number)
        return far.notified != 0

    cdef void unsecure(self, Slot *slot, int side, bint abort) noexcept nogil:
        cdef Far *far = &slot.far[side]
        if not far.kernel:
            SealedCarriage.unsecure(self, slot, side, abort)
        elif far.fd >= 0 and not abort and not far.fault and not far.notified:
            say_close(far.fd)
