# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Contexts of OpenSSL, out of the settings of a listener or an upstream.

Facts that shape it:

- A context of OpenSSL has one certificate of each type of key. So each set of names has a context;
  the servername callback puts the right one in the place of the first, which all links begin with.
- What the callback's new context brings is its certificates, ciphers, trust and ALPN; the rest
  (versions, groups, tickets, verification) stays as it was. All are configured alike.
- Tickets (RFC 5077, RFC 8446 4.6.1) are sealed by keys that all workers have, newest first; one
  that an older key sealed is renewed. Nothing is kept here of a session. One ticket for each
  handshake: who resumes gets another, and each costs an eighth of a handshake.
- OpenSSL 3 looks an algorithm up each time that it is named by its old function: so the cipher of
  tickets is fetched once.
- Which versions, ciphers and groups there are is said in `tls_terms.py`. The client's order of
  ciphers counts.

Must never: keep a key or a certificate where it can be read; say a key's bytes in an error.
"""

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset, strlen

from gateway.engine.ledger cimport L_CONTEXTS, count_freed, count_made
from gateway.engine.libssl cimport *
from gateway.engine.openssl cimport Tls

import hashlib
import ipaddress

from gateway.engine import ktls
from gateway.engine.tls_terms import PROFILES
from gateway.events import TlsServer

SUITES = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
TICKET_S = 24 * 3600                # how long a ticket is good, unless its key goes before

cdef int terms_index = -1           # where a context of OpenSSL keeps its `Terms`
cdef EVP_CIPHER *ticket_cipher = NULL


TOLD: list[bytes] = []              # lines of the keylog: of the link whose step is done now

# --- Callbacks of OpenSSL ----------------------------------------------------------------------

cdef void keylog(const SSL *ssl, const char *line) noexcept with gil:
    """A secret was made. Only where the kernel takes keys: see ktls_handover.py."""
    TOLD.append(line)


cdef void free_terms(
    void *parent, void *data, void *more, int index, long argl, void *argp
) noexcept nogil:
    """A context is freed; with the first go the terms of all."""
    cdef Terms *terms = <Terms *>data
    cdef size_t i
    if terms == NULL or terms.owner != parent:
        return
    for i in range(terms.name_count):
        if terms.names[i].context != parent:
            SSL_CTX_free(terms.names[i].context)
    free(terms.names)
    if terms.ticket_keys != NULL:
        memset(terms.ticket_keys, 0, terms.ticket_key_count * TICKET_KEY)
    free(terms.ticket_keys)
    free(terms)
    count_freed(L_CONTEXTS)


cdef inline const Terms *terms_of(SSL *ssl) noexcept nogil:
    return <const Terms *>SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), terms_index)


cdef SSL_CTX *named(const Terms *terms, const char *name, size_t size) noexcept nogil:
    """The context for this name: exact, or a wildcard for just one label (RFC 6125 6.4.3)."""
    cdef size_t i, label = 0
    cdef const Named *one
    for i in range(terms.name_count):
        one = &terms.names[i]
        if not one.is_wildcard and one.size == size and memcmp(one.name, name, size) == 0:
            return one.context
    while label < size and name[label] != c".":
        label += 1
    if not label or label == size:
        return NULL
    for i in range(terms.name_count):
        one = &terms.names[i]
        if (
            one.is_wildcard and one.size == size - label
            and memcmp(one.name, name + label, one.size) == 0
        ):
            return one.context
    return NULL


cdef int choose_certificate(SSL *ssl, int *alert, void *data) noexcept nogil:
    """By the name that the client wants; the first where it wants none, or one that we lack."""
    cdef const char *wanted = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name)
    cdef char name[NAME_MAX + 1]
    cdef size_t size, i
    cdef SSL_CTX *context
    if wanted == NULL:
        return SSL_TLSEXT_ERR_NOACK
    size = strlen(wanted)
    if not size or size > NAME_MAX:
        return SSL_TLSEXT_ERR_NOACK
    for i in range(size):
        name[i] = wanted[i] + 32 if c"A" <= wanted[i] <= c"Z" else wanted[i]
    if name[size - 1] == c".":
        size -= 1
    context = named(terms_of(ssl), name, size)
    if context == NULL:
        return SSL_TLSEXT_ERR_NOACK
    SSL_set_SSL_CTX(ssl, context)
    return SSL_TLSEXT_ERR_OK


cdef int choose_protocol(
    SSL *ssl, const unsigned char **chosen, unsigned char *chosen_size,
    const unsigned char *offered, unsigned int offered_size, void *data
) noexcept nogil:
    """The first of ours that the client offers; none of them is an end (RFC 7301 3.2)."""
    cdef const Terms *terms = terms_of(ssl)
    if SSL_select_next_proto(
        <unsigned char **>chosen, chosen_size, terms.alpn, terms.alpn_size, offered, offered_size
    ) == OPENSSL_NPN_NEGOTIATED:
        return SSL_TLSEXT_ERR_OK
    return SSL_TLSEXT_ERR_ALERT_FATAL


cdef int seal_ticket(
    SSL *ssl, unsigned char *name, unsigned char *iv, EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac,
    int sealing
) noexcept nogil:
    """Prepare to seal or to open a ticket. 0: there is no key for it; 2: it is to be renewed."""
    cdef const Terms *terms = terms_of(ssl)
    cdef const uint8_t *key
    cdef size_t i = 0
    cdef OSSL_PARAM params[3]
    if sealing:
        if RAND_bytes(iv, 16) != 1:
            return -1
        memcpy(name, terms.ticket_keys, 16)
    else:
        while i < terms.ticket_key_count and memcmp(
            terms.ticket_keys + i * TICKET_KEY, name, 16
        ):
            i += 1
        if i == terms.ticket_key_count:
            return 0
    key = terms.ticket_keys + i * TICKET_KEY
    params[0] = OSSL_PARAM_construct_octet_string(b"key", <void *>(key + 16), 32)
    params[1] = OSSL_PARAM_construct_utf8_string(b"digest", <char *>b"SHA256", 0)
    params[2] = OSSL_PARAM_construct_end()
    if EVP_MAC_CTX_set_params(mac, params) != 1:
        return -1
    if sealing:
        return EVP_EncryptInit_ex(cipher, ticket_cipher, NULL, key + 48, iv)
    if EVP_DecryptInit_ex(cipher, ticket_cipher, NULL, key + 48, iv) != 1:
        return -1
    return 2 if i else 1


cdef int note_refused(int holds, X509_STORE_CTX *verifying) noexcept nogil:
    """Remember the far end's certificate where it does not hold, to say whose it is."""
    cdef SSL *ssl
    cdef Tls *tls
    cdef X509 *leaf = X509_STORE_CTX_get0_cert(verifying)
    if not holds and leaf != NULL:
        ssl = <SSL *>X509_STORE_CTX_get_ex_data(
            verifying, SSL_get_ex_data_X509_STORE_CTX_idx()
        )
        tls = <Tls *>BIO_get_data(SSL_get_rbio(ssl))
        if tls.refused == NULL and X509_up_ref(leaf):
            tls.refused = leaf
    return holds


cdef int no_passphrase(char *into, int size, int writing, void *data) noexcept nogil:
    return 0


# --- Contexts ----------------------------------------------------------------------------------

cdef class _Owned:
    """One reference to a context of OpenSSL, given back with this."""

    cdef SSL_CTX *context

    def __dealloc__(self):
        SSL_CTX_free(self.context)


cdef class _Certificate:
    """One certificate, freed with this."""

    cdef X509 *one

    def __dealloc__(self):
        X509_free(self.one)


cdef class Context:
    """What links of a `TlsServer` or a `TlsClient` begin with. Dear to make, so make it once.

    Raises ValueError, with a sentence, for settings that cannot be used.
    """

    def __cinit__(self, settings):
        self.is_server = isinstance(settings, TlsServer)
        ERR_clear_error()
        if self.is_server:
            self._serve(settings)
        else:
            if not settings.server_name:
                raise ValueError("there is no server name")
            self.server_name = settings.server_name
            self._verifies = settings.verify
            self._ask(settings)

    def __dealloc__(self):
        SSL_CTX_free(self.first)

    cdef SSL *begin(self) except NULL:
        """A new state. The caller frees it."""
        cdef SSL *ssl = SSL_new(self.first)
        if ssl == NULL:
            raise MemoryError
        return ssl

    def _serve(self, settings):
        """A context for each set of names; the first certificate's is the first."""
        cdef _Owned one
        cdef dict alike = {}
        assert settings.certificates
        for pair in settings.certificates:
            alike.setdefault(frozenset(pair.names) or pair, []).append(pair)
        self._make_terms(settings)
        for number, pairs in enumerate(alike.values()):
            one = _Owned()
            one.context = new(TLS_server_method()) if number else self.first
            if not number:
                SSL_CTX_up_ref(self.first)
            self._configure_server(one.context, settings, pairs)
            for name in pairs[0].names:
                self._name(name, one.context)

    cdef int _make_terms(self, object settings) except -1:
        """The first context, and what belongs to it."""
        cdef size_t count = 0
        cdef bytes keys = b"".join(settings.ticket_keys)
        cdef bytes wire = wire_names(settings.alpn)
        assert len(keys) == TICKET_KEY * len(settings.ticket_keys)
        self.first = new(TLS_server_method())
        self.terms = <Terms *>calloc(1, sizeof(Terms))
        if self.terms == NULL:
            raise MemoryError
        count_made(L_CONTEXTS)
        self.terms.owner = self.first
        SSL_CTX_set_ex_data(self.first, terms_index, self.terms)
        for pair in settings.certificates:
            count += len(pair.names)
        self.terms.names = <Named *>calloc(count or 1, sizeof(Named))
        self.terms.ticket_keys = <uint8_t *>malloc(len(keys) or 1)
        if self.terms.names == NULL or self.terms.ticket_keys == NULL:
            raise MemoryError
        memcpy(self.terms.ticket_keys, <const char *>keys, len(keys))
        self.terms.ticket_key_count = len(settings.ticket_keys)
        memcpy(self.terms.alpn, <const char *>wire, len(wire))
        self.terms.alpn_size = <unsigned int>len(wire)
        return 0

    cdef int _name(self, str name, SSL_CTX *context) except -1:
        """The servername callback finds this context by that name."""
        cdef bytes text = name.encode("ascii").lower()
        cdef Named *one = &self.terms.names[self.terms.name_count]
        one.is_wildcard = text.startswith(b"*.")
        if one.is_wildcard:
            text = text[1:]
        if len(text) > NAME_MAX:
            return 0                            # no name in a handshake is that long
        memcpy(one.name, <const char *>text, len(text))
        one.size = len(text)
        one.context = context
        if context != self.first:
            SSL_CTX_up_ref(context)
        self.terms.name_count += 1
        return 0

    cdef int _configure_server(self, SSL_CTX *context, object settings, list pairs) except -1:
        cdef uint64_t options = SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION
        cdef int verify = SSL_VERIFY_NONE
        cdef bytes identity
        SSL_CTX_set_ex_data(context, terms_index, self.terms)
        configure(context, PROFILES[settings.profile])
        for pair in reversed(pairs):            # of two keys of one type, the first stays
            use_certificate(context, pair.chain, pair.key, "certificate")
        if self.terms.ticket_key_count:
            SSL_CTX_set_tlsext_ticket_key_evp_cb(context, seal_ticket)
            SSL_CTX_set_num_tickets(context, 1)
            SSL_CTX_set_timeout(context, TICKET_S)
        else:
            options |= SSL_OP_NO_TICKET
            SSL_CTX_set_num_tickets(context, 0)
        SSL_CTX_set_options(context, options)
        SSL_CTX_set_tlsext_servername_callback(context, choose_certificate)
        if self.terms.alpn_size:
            SSL_CTX_set_alpn_select_cb(context, choose_protocol, NULL)
        if settings.client_certificates != "off":
            verify = SSL_VERIFY_PEER
            if settings.client_certificates == "require":
                verify |= SSL_VERIFY_FAIL_IF_NO_PEER_CERT
            trust(context, settings.client_ca, True)
        SSL_CTX_set_verify(context, verify, NULL)
        # A ticket of a listener that asks for less is not one for a listener that asks for more.
        identity = hashlib.sha256(
            settings.client_certificates.encode() + b"\0" + settings.client_ca
        ).digest()
        SSL_CTX_set_session_id_context(context, <const unsigned char *><char *>identity, 32)
        return 0

    def _ask(self, settings):
        cdef bytes wire = wire_names(settings.alpn)
        self.first = new(TLS_client_method())
        configure(self.first, PROFILES[""])
        SSL_CTX_set_options(
            self.first, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET
        )
        if wire:
            SSL_CTX_set_alpn_protos(
                self.first, <const unsigned char *><char *>wire, <unsigned int>len(wire)
            )
        if settings.chain:
            use_certificate(self.first, settings.chain, settings.key, "client certificate")
        if not settings.verify:
            return
        SSL_CTX_set_verify(self.first, SSL_VERIFY_PEER, note_refused)
        if settings.ca:
            trust(self.first, settings.ca, False)
        elif SSL_CTX_set_default_verify_paths(self.first) != 1:
            raise refusal("the system's store of certificates cannot be read")

    cdef int expect(self, SSL *ssl) except -1:
        """Of a client: the name to ask for, and to insist on where the server is verified."""
        cdef bytes name = self.server_name.encode("ascii")
        cdef X509_VERIFY_PARAM *param = SSL_get0_param(ssl)
        try:
            ipaddress.ip_address(self.server_name)
        except ValueError:
            SSL_set_tlsext_host_name(ssl, name)
            # RFC 9525 2: names are in the SAN, and a wildcard is a whole label.
            X509_VERIFY_PARAM_set_hostflags(
                param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT
            )
            if self._verifies and SSL_set1_host(ssl, name) != 1:
                raise MemoryError
        else:                                   # no address is a server name (RFC 6066 3)
            if self._verifies and X509_VERIFY_PARAM_set1_ip_asc(param, name) != 1:
                raise MemoryError
        return 0


# --- Parts of contexts -------------------------------------------------------------------------

cdef SSL_CTX *new(const SSL_METHOD *method) except NULL:
    cdef SSL_CTX *context = SSL_CTX_new(method)
    if context == NULL:
        raise MemoryError
    return context


cdef int configure(SSL_CTX *context, object profile) except -1:
    """What both sides have: versions, ciphers, groups; buffers go while nothing is in them."""
    cdef bytes ciphers = profile.ciphers.encode(), groups = profile.groups.encode()
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS)
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF)
    if not ktls.support().missing:
        SSL_CTX_set_keylog_callback(context, keylog)
    if (
        SSL_CTX_set_min_proto_version(context, profile.minimum) != 1
        or (ciphers and SSL_CTX_set_cipher_list(context, <const char *>ciphers) != 1)
        or SSL_CTX_set_ciphersuites(context, <const char *><bytes>SUITES) != 1
        or SSL_CTX_set1_groups_list(context, <const char *>groups) != 1
    ):
        raise refusal("this OpenSSL lacks the ciphers of the profile")
    return 0


cdef bytes wire_names(tuple names):
    """As ALPN has them: each behind its length."""
    cdef bytes wire = b"".join(bytes((len(name),)) + name.encode("ascii") for name in names)
    assert len(wire) <= ALPN_MAX
    return wire


cdef int use_certificate(SSL_CTX *context, bytes chain, bytes key, str what) except -1:
    """A chain, leaf first, and its key. Raises ValueError."""
    cdef list certificates = read_certificates(chain)
    cdef EVP_PKEY *private
    cdef BIO *bio
    cdef X509 *one
    cdef int done
    if not certificates:
        raise refusal(f"the {what} has no PEM block of a certificate")
    bio = memory(key)
    private = PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL)
    BIO_free(bio)
    if private == NULL:
        raise refusal(f"the key of the {what} cannot be read; it must be PEM without a passphrase")
    done = SSL_CTX_use_certificate(context, (<_Certificate>certificates[0]).one)
    if done == 1:
        done = SSL_CTX_use_PrivateKey(context, private)
    EVP_PKEY_free(private)
    if done != 1:
        raise refusal(f"the {what} and its key do not fit, or are too weak")
    SSL_CTX_clear_chain_certs(context)
    for other in certificates[1:]:
        one = (<_Certificate>other).one
        X509_up_ref(one)
        if SSL_CTX_add0_chain_cert(context, one) != 1:
            X509_free(one)
            raise refusal(f"the chain of the {what} cannot be used")
    return 0


cdef int trust(SSL_CTX *context, bytes authorities, bint naming) except -1:
    """Verify by these authorities alone; naming: tell the client which they are."""
    cdef X509_STORE *store = SSL_CTX_get_cert_store(context)
    cdef list found = read_certificates(authorities)
    if not found:
        raise refusal("the CA file has no PEM block of a certificate")
    for one in found:
        X509_STORE_add_cert(store, (<_Certificate>one).one)
        if naming:
            SSL_CTX_add_client_CA(context, (<_Certificate>one).one)
    return 0


cdef list read_certificates(bytes pem):
    """All that are in it. Raises ValueError for one that is broken."""
    cdef BIO *bio = memory(pem)
    cdef _Certificate one
    cdef list found = []
    try:
        while True:
            one = _Certificate()
            one.one = PEM_read_bio_X509(bio, NULL, NULL, NULL)
            if one.one == NULL:
                break
            found.append(one)
    finally:
        BIO_free(bio)
    if ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE:
        raise refusal("a certificate cannot be read")
    ERR_clear_error()
    return found


cdef BIO *memory(bytes data) except NULL:
    """To read from; `data` must live as long."""
    cdef BIO *bio = BIO_new_mem_buf(<const char *>data, <int>len(data))
    if bio == NULL:
        raise MemoryError
    return bio


cdef object refusal(str sentence):
    """The error to raise; OpenSSL's own words go with it, and are forgotten."""
    cdef const char *reason = ERR_reason_error_string(ERR_peek_last_error())
    ERR_clear_error()
    if reason == NULL:
        return ValueError(sentence)
    return ValueError(f"{sentence} (OpenSSL: {reason.decode()})")


ticket_cipher = EVP_CIPHER_fetch(NULL, b"AES-256-CBC", NULL)
if ticket_cipher == NULL:
    raise ImportError("this OpenSSL has no AES-256-CBC")
terms_index = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, <void *>free_terms)
