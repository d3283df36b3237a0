# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False
"""Where compiled relays live: slots, the terms that they share, and the heap of their deadlines.

Slots never move, since a chunk of them is allocated at a time; a freed one carries a new
generation when it is used again. Nothing is freed before the end: a number is always safe to look
up. The heap holds each relay at its deadline or sooner.

Must never: know of sockets.
"""

from libc.math cimport INFINITY
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free, realloc

from gateway.engine.ledger cimport L_RELAYS, L_TIMERS, count_freed, count_made
from gateway.engine.relay cimport Rules
from gateway.engine.relay_report cimport rules_from


cdef class RelaySlots:
    """See the module's docstring."""

    def __cinit__(self, *_subclass, **_named):
        self._free = UNWATCHED
        self._rules_index = {}
        self._rules_free = []

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self._chunk_count):
            free(self._chunks[i])
        free(self._chunks)
        free(self._heap)
        free(self._ended)
        free(self._rules)
        free(self._rules_used)

    cdef uint32_t _take_slot(self) except? UNWATCHED:
        """A free slot; grows by a chunk, and what goes with the number of slots."""
        cdef uint32_t first, i, total
        cdef Slot **chunks
        if self._free == UNWATCHED:
            total = (self._chunk_count + 1) * CHUNK
            chunks = <Slot **>realloc(self._chunks, (self._chunk_count + 1) * sizeof(Slot *))
            if chunks == NULL:
                raise MemoryError
            self._chunks = chunks
            self._heap = <uint32_t *>realloc(self._heap, total * sizeof(uint32_t))
            self._ended = <uint32_t *>realloc(self._ended, total * sizeof(uint32_t))
            chunks[self._chunk_count] = <Slot *>calloc(CHUNK, sizeof(Slot))
            if self._heap == NULL or self._ended == NULL or chunks[self._chunk_count] == NULL:
                raise MemoryError
            first = self._chunk_count * CHUNK
            self._chunk_count += 1
            for i in range(CHUNK):
                self.slot(first + i).next_free = first + i + 1 if i + 1 < CHUNK else UNWATCHED
            self._free = first
        i = self._free
        self._free = self.slot(i).next_free
        return i

    cdef uint32_t _rules_of(self, object terms) except? UNWATCHED:
        """The index of these terms; relays of one route share them."""
        found = self._rules_index.get(terms)
        if found is not None:
            return found
        if not self._rules_free:
            self._make_rules_room()
        cdef uint32_t index = self._rules_free.pop()
        self._rules_used[index] = 0
        rules_from(&self._rules[index], terms)
        self._rules_index[terms] = index
        return index

    cdef int _make_rules_room(self) except -1:
        """Terms that a reload has left without a relay make room for others; where there are none
        there is room for twice as many."""
        cdef uint32_t index, room
        cdef Rules *rules
        cdef uint32_t *used
        for terms, place in list(self._rules_index.items()):
            index = place
            if not self._rules_used[index]:
                del self._rules_index[terms]
                self._rules_free.append(index)
        if self._rules_free:
            return 0
        room = self._rules_room * 2 or 16
        rules = <Rules *>realloc(self._rules, room * sizeof(Rules))
        if rules == NULL:
            raise MemoryError
        self._rules = rules
        used = <uint32_t *>realloc(self._rules_used, room * sizeof(uint32_t))
        if used == NULL:
            raise MemoryError
        self._rules_used = used
        self._rules_free = list(range(self._rules_room, room))
        self._rules_room = room
        return 0

    cdef void _free_slot(self, uint32_t index) noexcept nogil:
        cdef Slot *slot = self.slot(index)
        slot.used = 0
        self._rules_used[slot.relay.rules] -= 1
        count_freed(L_RELAYS)
        slot.generation = (slot.generation + 1) & 0xFFFFFF
        slot.next_free = self._free
        self._free = index

    # --- Time ----------------------------------------------------------------------------------

    def next_at(self):
        """When `tick` has something to do; infinite if never."""
        return self.slot(self._heap[0]).armed_at if self._heap_size else INFINITY

    cdef void _arm(self, uint32_t index) noexcept nogil:
        """Put it into the heap, unless it stands there at its time or sooner: deadlines mostly move
        away, and then one early tick every so often costs less than moving it each time."""
        cdef Slot *slot = self.slot(index)
        cdef double deadline = slot.relay.deadline
        if deadline == INFINITY:
            return
        if slot.heap_at == UNWATCHED:
            slot.heap_at = self._heap_size
            self._heap[self._heap_size] = index
            self._heap_size += 1
            count_made(L_TIMERS)
        elif slot.armed_at <= deadline:
            return
        slot.armed_at = deadline
        self._sift_up(slot.heap_at)

    cdef void _unarm(self, uint32_t index) noexcept nogil:
        cdef Slot *slot = self.slot(index)
        cdef uint32_t place = slot.heap_at, last
        if place == UNWATCHED:
            return
        slot.heap_at = UNWATCHED
        self._heap_size -= 1
        count_freed(L_TIMERS)
        if place == self._heap_size:
            return
        last = self._heap[self._heap_size]
        self._heap[place] = last
        self.slot(last).heap_at = place
        self._sift_up(place)
        self._sift_down(self.slot(last).heap_at)

    cdef void _sift_up(self, uint32_t place) noexcept nogil:
        cdef uint32_t index = self._heap[place], parent
        cdef double at = self.slot(index).armed_at
        while place:
            parent = (place - 1) // 2
            if self.slot(self._heap[parent]).armed_at <= at:
                break
            self._heap[place] = self._heap[parent]
            self.slot(self._heap[place]).heap_at = place
            place = parent
        self._heap[place] = index
        self.slot(index).heap_at = place

    cdef void _sift_down(self, uint32_t place) noexcept nogil:
        cdef uint32_t index = self._heap[place], child
        cdef double at = self.slot(index).armed_at, child_at, sibling_at
        while True:
            child = 2 * place + 1
            if child >= self._heap_size:
                break
            child_at = self.slot(self._heap[child]).armed_at
            if child + 1 < self._heap_size:
                sibling_at = self.slot(self._heap[child + 1]).armed_at
                if sibling_at < child_at:
                    child += 1
                    child_at = sibling_at
            if child_at >= at:
                break
            self._heap[place] = self._heap[child]
            self.slot(self._heap[place]).heap_at = place
            place = child
        self._heap[place] = index
        self.slot(index).heap_at = place
