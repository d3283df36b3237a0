# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""TLS machines over OpenSSL (see `secure.Machine`), and the table of functions by which compiled
relays go on with one where it was left.

OpenSSL reads from memory and writes to memory, by a BIO of ours that knows both for the length of
one call. So a record is copied by nobody but OpenSSL, and whoever has the socket decides how much
is read and sent at once. Facts:

- Without read-ahead OpenSSL asks for a record's header, then for its rest: it takes all that there
  is, and keeps at most the beginning of one record.
- `SSL_MODE_RELEASE_BUFFERS` frees its buffers of 17 KiB whenever nothing is in them: an idle link
  has none.
- OpenSSL tells an end from an error by a thread's queue of errors. Another part of the process may
  have left something there: it is emptied before, where it is not empty.
- Reading may have to write: an alert, the answer to a KeyUpdate (RFC 8446 4.6.3).

Must never: make a system call; keep an error in OpenSSL's queue.
"""

from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from gateway.engine.libssl cimport *
from gateway.engine.openssl_context cimport Context
from gateway.engine.secure_leg cimport (
    TLS_BROKEN,
    TLS_ENDED,
    TLS_MORE,
    TLS_RECORD,
    SecureLeg,
    TlsCalls,
    TlsIo,
)

import ipaddress
import weakref

from gateway.engine.ktls_handover import secrets_of
from gateway.engine.openssl_context import TOLD
from gateway.engine.secure import Facts
from gateway.engine.tls_terms import client_refused, failed, plain_name, upstream_refused
from gateway.events import PeerCertificate

cdef enum:
    NO_REASON = 1               # an error of which OpenSSL says nothing
    OUT = 256 * 1024            # more than a flight of a handshake, or what is sealed at once

cdef BIO_METHOD *method = NULL
cdef TlsCalls calls
cdef uint8_t out[OUT]           # of calls from Python, which has its lock meanwhile


# --- The BIO -----------------------------------------------------------------------------------

cdef int bio_read(BIO *bio, char *into, size_t room, size_t *count) noexcept nogil:
    cdef TlsIo *io = (<Tls *>BIO_get_data(bio)).io
    cdef size_t size
    BIO_clear_retry_flags(bio)
    if io == NULL or not io.size:
        BIO_set_retry_read(bio)
        count[0] = 0
        return 0
    size = io.size if io.size < room else room
    memcpy(into, io.sealed, size)
    io.sealed += size
    io.size -= size
    count[0] = size
    return 1


cdef int bio_write(BIO *bio, const char *data, size_t size, size_t *count) noexcept nogil:
    """All or nothing: that there is no room is a bug, and the end of the link."""
    cdef TlsIo *io = (<Tls *>BIO_get_data(bio)).io
    BIO_clear_retry_flags(bio)
    count[0] = 0
    if io == NULL or io.out_room - io.out_used < size:
        return 0
    memcpy(io.out + io.out_used, data, size)
    io.out_used += size
    count[0] = size
    return 1


cdef long bio_control(BIO *bio, int command, long number, void *data) noexcept nogil:
    return command == BIO_CTRL_FLUSH            # it is out as soon as it is written


# --- The table ---------------------------------------------------------------------------------

cdef int tls_open(
    void *state, TlsIo *io, uint8_t *clear, size_t room, size_t *count
) noexcept nogil:
    cdef Tls *tls = <Tls *>state
    cdef size_t got
    cdef int ended = TLS_MORE
    count[0] = 0
    if tls.ended or tls.error:
        io.size = 0                             # behind the end nothing counts (RFC 8446 6.1)
        return TLS_ENDED if tls.ended else TLS_BROKEN
    tls.io = io
    if ERR_peek_error():
        ERR_clear_error()
    while room:
        if SSL_read_ex(tls.ssl, clear, room, &got) == 1:
            clear += got
            room -= got
            count[0] += got
            if not io.size and not SSL_pending(tls.ssl):
                break
        elif wants_more(tls.ssl):
            break
        else:
            ended = fail(tls)
            break
    tls.io = NULL
    return ended


cdef bint wants_more(SSL *ssl) noexcept nogil:
    """Whether a call that gave nothing has nothing against the far end but that bytes are missing.
    What is no record at all fails with the same `SSL_want`: the error queue tells (as in
    SSL_get_error(3))."""
    return SSL_want(ssl) == SSL_READING and not ERR_peek_error()


cdef int fail(Tls *tls) noexcept nogil:
    """Reading came to an end. Which?"""
    if SSL_get_shutdown(tls.ssl) & SSL_RECEIVED_SHUTDOWN and not ERR_peek_error():
        tls.ended = True
        return TLS_ENDED
    tls.error = take_error()
    return TLS_BROKEN


cdef unsigned long take_error() noexcept nogil:
    """What OpenSSL says of a failure; never 0."""
    cdef unsigned long error = ERR_peek_error()
    ERR_clear_error()
    return error if error else NO_REASON


cdef bint tls_seal(void *state, TlsIo *io, const uint8_t *data, size_t size) noexcept nogil:
    cdef Tls *tls = <Tls *>state
    cdef size_t piece, done
    if tls.error or tls.notified:
        return False
    tls.io = io
    while size:
        piece = size if size < TLS_RECORD else TLS_RECORD
        if SSL_write_ex(tls.ssl, data, piece, &done) != 1:
            tls.error = take_error()
            break
        data += done
        size -= done
    tls.io = NULL
    return not tls.error


cdef void tls_notify(void *state, TlsIo *io) noexcept nogil:
    cdef Tls *tls = <Tls *>state
    if tls.notified or tls.error:
        return
    tls.notified = True
    tls.io = io
    SSL_shutdown(tls.ssl)
    ERR_clear_error()
    tls.io = NULL


cdef bint tls_holds(void *state) noexcept nogil:
    return SSL_has_pending((<Tls *>state).ssl)


cdef void tls_free(void *state) noexcept nogil:
    cdef Tls *tls = <Tls *>state
    SSL_free(tls.ssl)
    X509_free(tls.refused)
    free(tls)


cdef Tls *tls_new(SSL *ssl) except NULL:
    """The state owns `ssl`, also where this raises."""
    cdef Tls *tls = <Tls *>calloc(1, sizeof(Tls))
    cdef BIO *bio = BIO_new(method)
    if tls == NULL or bio == NULL:
        SSL_free(ssl)
        free(tls)
        BIO_free(bio)
        raise MemoryError
    tls.ssl = ssl
    BIO_set_data(bio, tls)
    BIO_set_init(bio, 1)
    SSL_set_bio(ssl, bio, bio)
    return tls


# --- Machines ----------------------------------------------------------------------------------

def check(settings):
    """Raises ValueError for settings that no link could be secured with."""
    Context(settings)


class Contexts:
    """A `secure.MachineFactory`: keeps the contexts of settings for as long as these live."""

    def __init__(self):
        self._contexts = weakref.WeakKeyDictionary()

    def __call__(self, settings):
        """A machine for one link. Raises ValueError for settings that cannot be used."""
        context = self._contexts.get(settings)
        if context is None:
            context = self._contexts[settings] = Context(settings)
        return OpensslMachine(context)


cdef class OpensslMachine(SecureLeg):
    """See secure.Machine."""

    cdef Context _context
    cdef bytes _sealed          # to be sent
    cdef list _told             # lines of the keylog
    cdef readonly bint finished
    cdef readonly bint pending

    is_compiled = True

    def __init__(self, Context context):
        cdef SSL *ssl = context.begin()
        self.state = tls_new(ssl)
        self.calls = &calls
        self._context = context
        self._sealed = b""
        self._told = []
        if context.is_server:
            SSL_set_accept_state(ssl)
        else:
            SSL_set_connect_state(ssl)
            context.expect(ssl)

    def feed(self, sealed):
        """See secure.Machine."""
        self.unopened = bytes(sealed) if not self.unopened else self.unopened + sealed

    def shake(self):
        """See secure.Machine."""
        cdef Tls *tls = <Tls *>self.state
        cdef TlsIo io
        cdef int done
        self._begin(&io)
        ERR_clear_error()
        tls.io = &io
        done = SSL_do_handshake(tls.ssl)
        tls.io = NULL
        if TOLD:
            self._told += TOLD
            TOLD.clear()
        self._end(&io)
        if done == 1:
            self.pending = self._has_more()
            return True
        if wants_more(tls.ssl):
            return False
        tls.error = take_error()
        raise self._fault()

    def secrets(self):
        """See secure.Machine."""
        told, self._told = self._told, []
        return secrets_of(told)

    def facts(self):
        """See secure.Machine."""
        cdef SSL *ssl = (<Tls *>self.state).ssl
        cdef const unsigned char *name = NULL
        cdef unsigned int size = 0
        cdef const char *asked = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name)
        SSL_get0_alpn_selected(ssl, &name, &size)
        if self._context.is_server:
            server_name = plain_name((<bytes>asked).decode("latin-1") if asked != NULL else "")
        else:
            server_name = self._context.server_name
        return Facts(
            server_name=server_name,
            protocol=(<bytes>name[:size]).decode("latin-1") if size else "",
            version=(<bytes>SSL_get_version(ssl)).decode(),
            cipher=(<bytes>SSL_CIPHER_get_name(SSL_get_current_cipher(ssl))).decode(),
            resumed=SSL_session_reused(ssl) == 1,
            certificate=certificate_of(SSL_get0_peer_certificate(ssl)),
        )

    def open_into(self, buffer):
        """See secure.Machine."""
        cdef uint8_t[::1] room = buffer
        cdef TlsIo io
        cdef size_t count
        cdef int ended
        self._begin(&io)
        ended = tls_open(self.state, &io, &room[0], room.shape[0], &count)
        self._end(&io)
        self.pending = count > 0 and self._has_more()
        if ended == TLS_ENDED:
            self.finished = True
            self.pending = count > 0
        elif ended == TLS_BROKEN:
            self.pending = count > 0        # the next call says it
            if not count:
                raise self._fault()
        return count

    def seal(self, data):
        """See secure.Machine."""
        cdef const uint8_t[::1] view = data
        cdef TlsIo io
        cdef bint sealed
        self._begin(&io)
        io.size = 0
        sealed = tls_seal(self.state, &io, &view[0], view.shape[0])
        self._sealed += io.out[:io.out_used]
        if not sealed:
            raise self._fault()

    def say_close(self):
        """See secure.Machine."""
        cdef TlsIo io
        self._begin(&io)
        io.size = 0
        tls_notify(self.state, &io)
        self._sealed += io.out[:io.out_used]

    def take(self):
        """See secure.Machine."""
        sealed, self._sealed = self._sealed, b""
        return sealed

    cdef void _begin(self, TlsIo *io):
        io.sealed = <const uint8_t *><char *>self.unopened
        io.size = len(self.unopened)
        io.out, io.out_used, io.out_room = out, 0, OUT

    cdef int _end(self, TlsIo *io) except -1:
        """What was not read waits on; what was written is to be taken."""
        if io.size != <size_t>len(self.unopened):
            self.unopened = io.sealed[:io.size]
        if io.out_used:
            self._sealed += io.out[:io.out_used]
        return 0

    cdef bint _has_more(self):
        return len(self.unopened) > 0 or SSL_pending((<Tls *>self.state).ssl) > 0

    cdef object _fault(self):
        """The error to raise for what broke it."""
        cdef Tls *tls = <Tls *>self.state
        cdef long verdict = SSL_get_verify_result(tls.ssl)
        cdef const char *reason = ERR_reason_error_string(tls.error)
        if verdict != X509_V_OK and ERR_GET_REASON(tls.error) == SSL_R_CERTIFICATE_VERIFY_FAILED:
            text = (<bytes>X509_verify_cert_error_string(verdict)).decode()
            if self._context.is_server:
                return client_refused(verdict, text)
            refused = certificate_of(tls.refused)
            return upstream_refused(
                verdict, text, self._context.server_name, refused.names if refused else (),
            )
        # As Python names them; OpenSSL 3.2 calls "ssl/tls" what was "sslv3".
        name = (<bytes>reason).decode() if reason != NULL else "it does not say why"
        name = name.replace("ssl/tls", "sslv3").replace(" ", "_").upper()
        return failed(name, "client" if self._context.is_server else "upstream")


# --- Certificates of the far end ---------------------------------------------------------------

cdef object certificate_of(X509 *one):
    """A `PeerCertificate`, or None for none."""
    cdef int size
    cdef unsigned char *at
    if one == NULL:
        return None
    size = i2d_X509(one, NULL)
    der = bytearray(size)
    at = der
    i2d_X509(one, &at)
    return PeerCertificate(subject_of(one), names_of(one), bytes(der))


cdef str subject_of(X509 *one):
    """RFC 4514, with the characters of other scripts as they are."""
    cdef BIO *bio = BIO_new(BIO_s_mem())
    cdef char *text = NULL
    cdef long size
    if bio == NULL:
        raise MemoryError
    X509_NAME_print_ex(
        bio, X509_get_subject_name(one), 0, XN_FLAG_RFC2253 & ~ASN1_STRFLGS_ESC_MSB
    )
    size = BIO_get_mem_data(bio, &text)
    subject = (<bytes>text[:size]).decode("utf-8", "replace") if size > 0 else ""
    BIO_free(bio)
    return subject


cdef tuple names_of(X509 *one):
    """The subject's alternative names, of the kinds that `PeerCertificate` has."""
    cdef GENERAL_NAMES *names = X509_get_ext_d2i(one, NID_subject_alt_name, NULL, NULL)
    cdef GENERAL_NAME *name
    cdef ASN1_STRING *text
    cdef int kind = 0, place
    found = []
    if names == NULL:
        ERR_clear_error()
        return ()
    for place in range(sk_GENERAL_NAME_num(names)):
        name = sk_GENERAL_NAME_value(names, place)
        text = <ASN1_STRING *>GENERAL_NAME_get0_value(name, &kind)
        if kind not in (GEN_DNS, GEN_EMAIL, GEN_URI, GEN_IPADD):
            continue
        value = <bytes>ASN1_STRING_get0_data(text)[:ASN1_STRING_length(text)]
        if kind == GEN_IPADD:
            if len(value) in (4, 16):
                found.append(f"IP:{ipaddress.ip_address(value)}")
        else:
            label = {GEN_DNS: "DNS", GEN_EMAIL: "EMAIL", GEN_URI: "URI"}[kind]
            found.append(f"{label}:{value.decode('latin-1')}")
    GENERAL_NAMES_free(names)
    return tuple(found)


cdef void set_up() except *:
    """The table, and the BIO's methods: once."""
    global method
    method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, b"memory of one call")
    if method == NULL:
        raise MemoryError
    BIO_meth_set_read_ex(method, bio_read)
    BIO_meth_set_write_ex(method, bio_write)
    BIO_meth_set_ctrl(method, bio_control)
    calls.open, calls.seal, calls.notify = tls_open, tls_seal, tls_notify
    calls.holds, calls.free = tls_holds, tls_free


set_up()
