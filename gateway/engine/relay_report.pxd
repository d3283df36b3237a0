"""Between the compiled rules and Python. See relay_report.pyx."""

from gateway.engine.relay cimport Relay, Rules

cdef void rules_from(Rules *rules, object terms) except *
cdef object counts_of(const Relay *relay, int side, str not_spliced)
cdef tuple outcome_of(const Relay *relay)
cdef int cause_number(object cause) except -1
cdef int fault_detail(object fault) except -1
