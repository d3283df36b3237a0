"""How a compiled relay's legs with TLS are carried. See relay_sealed.pyx."""

from libc.stdint cimport uint8_t

from gateway.engine.relay_carriage cimport RelayCarriage
from gateway.engine.relay_slots cimport Slot
from gateway.engine.secure_leg cimport SecureLeg, TlsIo

cdef class SealedCarriage(RelayCarriage):
    cdef uint8_t *_sealed            # made with the first leg that has TLS
    cdef uint8_t *_record            # pieces of one record, put together

    cdef int take_leg(self, Slot *slot, int side, SecureLeg leg, bytes queued) except -1
    cdef int open_first(self, Slot *slot, int side, SecureLeg leg) except -1
    cdef void open_sealed(
        self, Slot *slot, int side, const uint8_t *data, size_t size, uint8_t *into, bint last
    ) noexcept nogil
    cdef void _begin_io(self, TlsIo *io, const uint8_t *sealed, size_t size) noexcept nogil
    cdef bint _seal_spans(self, Slot *slot, int side, TlsIo *io, size_t *clear) noexcept nogil
    cdef void _send_io(self, Slot *slot, int side, TlsIo *io, size_t clear) noexcept nogil
    cdef void _end_sealed(self, Slot *slot, int side, bint notified) noexcept nogil
