"""One link's TLS over OpenSSL: bytes in memory, no socket. See openssl.pyx."""

from gateway.engine.libssl cimport SSL, X509
from gateway.engine.secure_leg cimport TlsIo

cdef struct Tls:
    SSL *ssl
    TlsIo *io                   # of the call that runs
    X509 *refused               # the far end's certificate, where it did not hold
    unsigned long error         # OpenSSL's number for what broke it; 0: nothing did
    bint notified               # our close_notify was said
    bint ended                  # the far end's came
