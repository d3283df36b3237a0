"""How a compiled relay's legs are carried whose TLS is the kernel's. See relay_kernel.pyx."""

from libc.stdint cimport uint32_t

from gateway.engine.relay_sealed cimport SealedCarriage
from gateway.engine.relay_slots cimport Slot

cdef class KernelCarriage(SealedCarriage):
    cdef dict _keys                  # what follows at a KeyUpdate, by slot and side

    cdef int take_kernel_leg(self, Slot *slot, int side, object leg) except -1
    cdef int drop_keys(self, uint32_t index) except -1
    cdef bint _follow(self, Slot *slot, int side, bint asked) noexcept nogil
