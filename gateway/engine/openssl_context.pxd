"""Contexts of OpenSSL, from the settings of a listener or an upstream. See openssl_context.pyx."""

from libc.stdint cimport uint8_t

from gateway.engine.libssl cimport SSL, SSL_CTX

cdef enum:
    NAME_MAX = 255
    ALPN_MAX = 256
    TICKET_KEY = 80             # a name of 16 bytes, 32 for HMAC-SHA-256, 32 for AES-256-CBC

cdef struct Named:
    # A name of a certificate, and the context that has it.
    char name[NAME_MAX + 1]     # without the "*" of a wildcard
    size_t size
    bint is_wildcard
    SSL_CTX *context

cdef struct Terms:
    # What callbacks need. All contexts of some settings know it; it is freed with the first.
    SSL_CTX *owner
    Named *names
    size_t name_count
    uint8_t *ticket_keys        # newest first
    size_t ticket_key_count
    uint8_t alpn[ALPN_MAX]      # as on the wire: each name behind its length
    unsigned int alpn_size

cdef class Context:
    cdef SSL_CTX *first
    cdef Terms *terms
    cdef readonly str server_name    # that of a `TlsClient`
    cdef bint _verifies
    cdef readonly bint is_server

    cdef SSL *begin(self) except NULL
    cdef int expect(self, SSL *ssl) except -1
    cdef int _make_terms(self, object settings) except -1
    cdef int _name(self, str name, SSL_CTX *context) except -1
    cdef int _configure_server(self, SSL_CTX *context, object settings, list pairs) except -1
