"""What is used of OpenSSL 3 (libssl and libcrypto), and only that; macros as functions.

Debian's libssl-dev has the headers. 1.1.1 and older lack what is named here and do not compile.
"""

from libc.stdint cimport uint64_t

cdef extern from "<openssl/bio.h>" nogil:
    ctypedef struct BIO
    ctypedef struct BIO_METHOD
    BIO_METHOD *BIO_meth_new(int kind, const char *name)
    int BIO_get_new_index()
    int BIO_meth_set_read_ex(BIO_METHOD *method, int (*read)(BIO *, char *, size_t, size_t *))
    int BIO_meth_set_write_ex(
        BIO_METHOD *method, int (*write)(BIO *, const char *, size_t, size_t *)
    )
    int BIO_meth_set_ctrl(BIO_METHOD *method, long (*control)(BIO *, int, long, void *))
    BIO *BIO_new(const BIO_METHOD *method)
    BIO *BIO_new_mem_buf(const void *data, int size)
    int BIO_free(BIO *bio)
    void BIO_set_data(BIO *bio, void *data)
    void *BIO_get_data(BIO *bio)
    void BIO_set_init(BIO *bio, int init)
    void BIO_set_retry_read(BIO *bio)
    void BIO_clear_retry_flags(BIO *bio)
    long BIO_get_mem_data(BIO *bio, char **data)
    const BIO_METHOD *BIO_s_mem()
    int BIO_read(BIO *bio, void *into, int size)
    enum:
        BIO_TYPE_SOURCE_SINK
        BIO_CTRL_FLUSH

cdef extern from "<openssl/err.h>" nogil:
    unsigned long ERR_get_error()
    unsigned long ERR_peek_error()
    unsigned long ERR_peek_last_error()
    void ERR_clear_error()
    int ERR_GET_REASON(unsigned long error)
    int ERR_GET_LIB(unsigned long error)
    const char *ERR_reason_error_string(unsigned long error)
    enum:
        ERR_LIB_SSL
        ERR_LIB_PEM

cdef extern from "<openssl/evp.h>" nogil:
    ctypedef struct EVP_PKEY
    ctypedef struct EVP_CIPHER
    ctypedef struct EVP_CIPHER_CTX
    ctypedef struct EVP_MAC_CTX
    EVP_CIPHER *EVP_CIPHER_fetch(void *library, const char *name, const char *properties)
    int EVP_EncryptInit_ex(
        EVP_CIPHER_CTX *context, const EVP_CIPHER *cipher, void *engine,
        const unsigned char *key, const unsigned char *iv
    )
    int EVP_DecryptInit_ex(
        EVP_CIPHER_CTX *context, const EVP_CIPHER *cipher, void *engine,
        const unsigned char *key, const unsigned char *iv
    )
    void EVP_PKEY_free(EVP_PKEY *key)
    int EVP_MAC_CTX_set_params(EVP_MAC_CTX *context, const OSSL_PARAM *params)
    int EVP_MAC_init(
        EVP_MAC_CTX *context, const unsigned char *key, size_t size, const OSSL_PARAM *params
    )
    enum:
        EVP_MAX_IV_LENGTH

cdef extern from "<openssl/params.h>" nogil:
    ctypedef struct OSSL_PARAM:
        pass
    OSSL_PARAM OSSL_PARAM_construct_utf8_string(const char *name, char *text, size_t size)
    OSSL_PARAM OSSL_PARAM_construct_octet_string(const char *name, void *data, size_t size)
    OSSL_PARAM OSSL_PARAM_construct_end()

cdef extern from "<openssl/rand.h>" nogil:
    int RAND_bytes(unsigned char *into, int size)

cdef extern from "<openssl/x509.h>" nogil:
    ctypedef struct X509
    ctypedef struct X509_NAME
    ctypedef struct X509_STORE
    ctypedef struct X509_STORE_CTX
    ctypedef struct X509_VERIFY_PARAM
    void X509_free(X509 *certificate)
    int X509_up_ref(X509 *certificate)
    X509_NAME *X509_get_subject_name(const X509 *certificate)
    int X509_NAME_print_ex(BIO *out, const X509_NAME *name, int indent, unsigned long flags)
    int i2d_X509(X509 *certificate, unsigned char **out)
    int X509_STORE_add_cert(X509_STORE *store, X509 *certificate)
    const char *X509_verify_cert_error_string(long number)
    enum:
        XN_FLAG_RFC2253
        ASN1_STRFLGS_ESC_MSB
        X509_V_OK

cdef extern from "<openssl/x509v3.h>" nogil:
    ctypedef struct ASN1_STRING
    ctypedef struct GENERAL_NAME
    ctypedef struct GENERAL_NAMES
    GENERAL_NAMES *X509_get_ext_d2i(const X509 *certificate, int kind, int *critical, int *index)
    int sk_GENERAL_NAME_num(const GENERAL_NAMES *names)
    GENERAL_NAME *sk_GENERAL_NAME_value(const GENERAL_NAMES *names, int place)
    void GENERAL_NAMES_free(GENERAL_NAMES *names)
    void *GENERAL_NAME_get0_value(const GENERAL_NAME *name, int *kind)
    const unsigned char *ASN1_STRING_get0_data(const ASN1_STRING *text)
    int ASN1_STRING_length(const ASN1_STRING *text)
    enum:
        NID_subject_alt_name
        GEN_EMAIL
        GEN_DNS
        GEN_URI
        GEN_IPADD
        X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS
        X509_CHECK_FLAG_NEVER_CHECK_SUBJECT

cdef extern from "<openssl/x509_vfy.h>" nogil:
    int X509_VERIFY_PARAM_set1_ip_asc(X509_VERIFY_PARAM *param, const char *text)
    void X509_VERIFY_PARAM_set_hostflags(X509_VERIFY_PARAM *param, unsigned int flags)
    X509 *X509_STORE_CTX_get0_cert(const X509_STORE_CTX *context)
    void *X509_STORE_CTX_get_ex_data(const X509_STORE_CTX *context, int index)

cdef extern from "<openssl/pem.h>" nogil:
    X509 *PEM_read_bio_X509(BIO *bio, X509 **out, void *callback, void *data)
    EVP_PKEY *PEM_read_bio_PrivateKey(
        BIO *bio, EVP_PKEY **out, int (*callback)(char *, int, int, void *), void *data
    )
    enum:
        PEM_R_NO_START_LINE

cdef extern from "<openssl/ssl.h>" nogil:
    ctypedef struct SSL
    ctypedef struct SSL_CTX
    ctypedef struct SSL_METHOD
    ctypedef struct SSL_CIPHER
    const SSL_METHOD *TLS_server_method()
    const SSL_METHOD *TLS_client_method()
    SSL_CTX *SSL_CTX_new(const SSL_METHOD *method)
    void SSL_CTX_free(SSL_CTX *context)
    int SSL_CTX_up_ref(SSL_CTX *context)
    uint64_t SSL_CTX_set_options(SSL_CTX *context, uint64_t options)
    long SSL_CTX_set_mode(SSL_CTX *context, long mode)
    int SSL_CTX_set_min_proto_version(SSL_CTX *context, int version)
    int SSL_CTX_set_cipher_list(SSL_CTX *context, const char *names)
    int SSL_CTX_set_ciphersuites(SSL_CTX *context, const char *names)
    int SSL_CTX_set1_groups_list(SSL_CTX *context, const char *names)
    long SSL_CTX_set_session_cache_mode(SSL_CTX *context, long mode)
    long SSL_CTX_set_timeout(SSL_CTX *context, long seconds)
    int SSL_CTX_set_num_tickets(SSL_CTX *context, size_t count)
    int SSL_CTX_set_session_id_context(
        SSL_CTX *context, const unsigned char *identity, unsigned int size
    )
    int SSL_CTX_use_certificate(SSL_CTX *context, X509 *certificate)
    int SSL_CTX_use_PrivateKey(SSL_CTX *context, EVP_PKEY *key)
    int SSL_CTX_check_private_key(const SSL_CTX *context)
    long SSL_CTX_add0_chain_cert(SSL_CTX *context, X509 *certificate)
    long SSL_CTX_clear_chain_certs(SSL_CTX *context)
    void SSL_CTX_set_verify(
        SSL_CTX *context, int mode, int (*callback)(int, X509_STORE_CTX *)
    )
    X509_STORE *SSL_CTX_get_cert_store(const SSL_CTX *context)
    int SSL_CTX_set_default_verify_paths(SSL_CTX *context)
    int SSL_CTX_add_client_CA(SSL_CTX *context, X509 *certificate)
    long SSL_CTX_set_tlsext_servername_callback(
        SSL_CTX *context, int (*callback)(SSL *, int *, void *)
    )
    long SSL_CTX_set_tlsext_ticket_key_evp_cb(
        SSL_CTX *context,
        int (*callback)(
            SSL *, unsigned char *, unsigned char *, EVP_CIPHER_CTX *, EVP_MAC_CTX *, int
        )
    )
    void SSL_CTX_set_keylog_callback(
        SSL_CTX *context, void (*callback)(const SSL *, const char *) noexcept
    )
    void SSL_CTX_set_alpn_select_cb(
        SSL_CTX *context,
        int (*callback)(
            SSL *, const unsigned char **, unsigned char *, const unsigned char *, unsigned int,
            void *
        ),
        void *data
    )
    int SSL_CTX_set_alpn_protos(
        SSL_CTX *context, const unsigned char *names, unsigned int size
    )
    int SSL_select_next_proto(
        unsigned char **chosen, unsigned char *chosen_size, const unsigned char *ours,
        unsigned int ours_size, const unsigned char *theirs, unsigned int theirs_size
    )
    int SSL_CTX_set_ex_data(SSL_CTX *context, int index, void *data)
    void *SSL_CTX_get_ex_data(const SSL_CTX *context, int index)
    int SSL_CTX_get_ex_new_index(long argl, void *argp, void *made, void *copied, void *freed)
    SSL_CTX *SSL_set_SSL_CTX(SSL *ssl, SSL_CTX *context)
    SSL_CTX *SSL_get_SSL_CTX(const SSL *ssl)

    SSL *SSL_new(SSL_CTX *context)
    void SSL_free(SSL *ssl)
    void SSL_set_bio(SSL *ssl, BIO *read, BIO *write)
    void SSL_set_accept_state(SSL *ssl)
    void SSL_set_connect_state(SSL *ssl)
    int SSL_do_handshake(SSL *ssl)
    int SSL_read_ex(SSL *ssl, void *into, size_t room, size_t *count)
    int SSL_write_ex(SSL *ssl, const void *data, size_t size, size_t *count)
    int SSL_shutdown(SSL *ssl)
    int SSL_get_shutdown(const SSL *ssl)
    int SSL_has_pending(const SSL *ssl)
    int SSL_pending(const SSL *ssl)
    int SSL_want(const SSL *ssl)
    int SSL_is_init_finished(const SSL *ssl)
    int SSL_session_reused(const SSL *ssl)
    const char *SSL_get_version(const SSL *ssl)
    const SSL_CIPHER *SSL_get_current_cipher(const SSL *ssl)
    const char *SSL_CIPHER_get_name(const SSL_CIPHER *cipher)
    const char *SSL_get_servername(const SSL *ssl, int kind)
    long SSL_set_tlsext_host_name(SSL *ssl, const char *name)
    int SSL_set1_host(SSL *ssl, const char *name)
    X509_VERIFY_PARAM *SSL_get0_param(SSL *ssl)
    void SSL_get0_alpn_selected(const SSL *ssl, const unsigned char **name, unsigned int *size)
    BIO *SSL_get_rbio(const SSL *ssl)
    int SSL_get_ex_data_X509_STORE_CTX_idx()
    X509 *SSL_get0_peer_certificate(const SSL *ssl)
    long SSL_get_verify_result(const SSL *ssl)
    enum:
        SSL_R_CERTIFICATE_VERIFY_FAILED
        SSL_OP_NO_RENEGOTIATION
        SSL_OP_NO_COMPRESSION
        SSL_OP_NO_TICKET
        SSL_OP_CIPHER_SERVER_PREFERENCE
        SSL_OP_IGNORE_UNEXPECTED_EOF
        SSL_OP_PRIORITIZE_CHACHA
        SSL_MODE_RELEASE_BUFFERS
        SSL_MODE_ENABLE_PARTIAL_WRITE
        SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
        SSL_SESS_CACHE_OFF
        SSL_VERIFY_NONE
        SSL_VERIFY_PEER
        SSL_VERIFY_FAIL_IF_NO_PEER_CERT
        SSL_TLSEXT_ERR_OK
        SSL_TLSEXT_ERR_NOACK
        SSL_TLSEXT_ERR_ALERT_FATAL
        OPENSSL_NPN_NEGOTIATED
        TLSEXT_NAMETYPE_host_name
        TLS1_2_VERSION
        TLS1_3_VERSION
        SSL_READING
        SSL_WRITING
        SSL_RECEIVED_SHUTDOWN
        SSL_SENT_SHUTDOWN
