# cython: language_level=3, boundscheck=False, wraparound=False
"""The TLS of one link, as it is handed to compiled relays.

A `SecureLeg` owns its state until somebody takes it over, by setting `state` to NULL; from then on
that somebody calls `free`. What makes a state is a subclass.
"""


cdef class SecureLeg:
    """See the module's docstring."""

    def __cinit__(self):
        self.unopened = self.unsent = b""

    def hand_over(self, bytes unsent, size_t owed):
        """Before a relay takes it: sealed bytes that the socket did not take, and how many clear
        bytes of those stand at the front of what is queued for it all the same."""
        self.unsent, self.owed = unsent, owed
        return self

    def __dealloc__(self):
        if self.state != NULL:
            self.calls.free(self.state)
