"""What TLS machines of every kind share: profiles, and plain sentences for what fails.

Facts only, and no TLS library: `tls.py` and `openssl.pyx` hand them to theirs. A sentence is for
the access record: what was expected, what came, what to do; numbers of verification errors are
those of OpenSSL (x509_vfy.h), which are the same in all its versions.
"""

from dataclasses import dataclass

from gateway.engine.secure import TlsFault
from gateway.errors import Fault, Handshake

VERSION_1_2 = 0x0303               # as on the wire (RFC 8446 4.2.1)
VERSION_1_3 = 0x0304


@dataclass(frozen=True, slots=True)
class Profile:
    """Versions, the ciphers of TLS 1.2 (those of 1.3 are all good), and groups for the exchange."""

    minimum: int
    ciphers: str
    groups: str


# Mozilla's "Server Side TLS", versions 5.7 and newer. Its intermediate profile has DHE as well,
# which needs parameters of its own, is slow, and is what no client of these years is left with.
PROFILES = {
    "intermediate": Profile(
        VERSION_1_2,
        "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
        ":ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
        ":ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305",
        "X25519:P-256:P-384",
    ),
    "modern": Profile(VERSION_1_3, "", "X25519:P-256:P-384"),
}
PROFILES[""] = PROFILES["intermediate"]          # of the client toward upstreams


def plain_name(server_name: str | None) -> str:
    """As names are compared: without case, and without the dot of the root."""
    return (server_name or "").lower().removesuffix(".")


# --- Sentences ----------------------------------------------------------------------------------

NOT_YET_VALID, EXPIRED = 9, 10
SELF_SIGNED, SELF_SIGNED_IN_CHAIN = 18, 19
UNTRUSTED = (2, 20, 21, 27)        # an issuer that is not there, or not trusted
OTHER_HOST, OTHER_EMAIL, OTHER_ADDRESS = 62, 63, 64


def upstream_refused(
    code: int, text: str, server_name: str, names: tuple[str, ...] = ()
) -> TlsFault:
    """An upstream's certificate is not accepted, by OpenSSL's verification error; `names` are those
    that it is for, where they are known."""
    if code in (OTHER_HOST, OTHER_ADDRESS):
        found = f" but for {', '.join(names)}" if names else ""
        detail = (
            f"the upstream's certificate is not for {server_name}{found}; "
            "set server_name to a name that it is for"
        )
    elif code == EXPIRED:
        detail = "the upstream's certificate has expired; it must be renewed there"
    elif code == NOT_YET_VALID:
        detail = "the upstream's certificate is not valid yet; compare the clocks of both machines"
    elif code == SELF_SIGNED:
        detail = (
            "the upstream's certificate is signed by itself and not among those that are trusted; "
            "set ca to it"
        )
    elif code == SELF_SIGNED_IN_CHAIN or code in UNTRUSTED:
        detail = (
            "the upstream's certificate is signed by nobody that is trusted; "
            "set ca to the certificate of its CA"
        )
    else:
        detail = f"the upstream's certificate is not accepted: {text}"
    return TlsFault(Fault.TLS, detail, Handshake.UNTRUSTED)


def client_refused(code: int, text: str) -> TlsFault:
    """A client's certificate is not accepted."""
    if code == EXPIRED:
        detail = "the client's certificate has expired"
    elif code == NOT_YET_VALID:
        detail = "the client's certificate is not valid yet"
    elif code in (SELF_SIGNED, SELF_SIGNED_IN_CHAIN) or code in UNTRUSTED:
        detail = "the client's certificate is signed by nobody in client_ca"
    else:
        detail = f"the client's certificate is not accepted: {text}"
    return TlsFault(Fault.TLS, detail, Handshake.UNTRUSTED)


_HTTP = Handshake.NOT_TLS, "the {far} spoke plain HTTP"
_NOT_TLS = Handshake.NOT_TLS, "what the {far} sent is not TLS"
_VERSION = Handshake.VERSION, "the {far} offers no version of TLS that is spoken here"
_REFUSED = Handshake.REFUSED, "the {far} does not accept our certificate"
_FORGED = Handshake.OTHER, "a record of the {far} is damaged or forged"

# What OpenSSL calls it (the reason, in upper case), and what it means to an operator. An alert is
# what the far end said; {far} is "client" or "upstream".
_REASONS = {
    "HTTP_REQUEST": _HTTP,
    "HTTPS_PROXY_REQUEST": _HTTP,
    "WRONG_VERSION_NUMBER": _NOT_TLS,
    "UNKNOWN_PROTOCOL": _NOT_TLS,
    "PACKET_LENGTH_TOO_LONG": _NOT_TLS,
    "RECORD_LENGTH_MISMATCH": _NOT_TLS,
    "BAD_RECORD_TYPE": _NOT_TLS,
    "UNSUPPORTED_PROTOCOL": _VERSION,
    "VERSION_TOO_LOW": _VERSION,
    "WRONG_SSL_VERSION": _VERSION,
    "TLSV1_ALERT_PROTOCOL_VERSION": (
        Handshake.VERSION, "the {far} speaks no version of TLS that is spoken here",
    ),
    "NO_SHARED_CIPHER": (
        Handshake.CIPHER, "the {far} offers no cipher that is spoken here",
    ),
    "NO_SUITABLE_KEY_SHARE": (
        Handshake.CIPHER, "the {far} offers no key exchange that is spoken here",
    ),
    "NO_SHARED_GROUPS": (
        Handshake.CIPHER, "the {far} offers no key exchange that is spoken here",
    ),
    "NO_SUITABLE_SIGNATURE_ALGORITHM": (
        Handshake.CIPHER, "the {far} takes no signature that our certificate can make",
    ),
    "SSLV3_ALERT_HANDSHAKE_FAILURE": (
        # In TLS 1.2 also of a server that was shown no certificate (RFC 5246 7.4.6).
        Handshake.CIPHER,
        "the {far} finds nothing that both sides speak, or it wants another certificate",
    ),
    "NO_APPLICATION_PROTOCOL": (
        Handshake.OTHER, "the {far} offers no protocol that is spoken here (ALPN)",
    ),
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (
        Handshake.NO_CERTIFICATE, "the {far} gave no certificate, and one is required",
    ),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": (
        Handshake.REFUSED, "the {far} requires a certificate of ours",
    ),
    "TLSV1_ALERT_UNKNOWN_CA": (
        Handshake.REFUSED, "the {far} does not trust our certificate",
    ),
    "SSLV3_ALERT_BAD_CERTIFICATE": _REFUSED,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": _REFUSED,
    "SSLV3_ALERT_CERTIFICATE_REVOKED": _REFUSED,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _REFUSED,
    "TLSV1_ALERT_ACCESS_DENIED": _REFUSED,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": (
        Handshake.REFUSED, "to the {far} our certificate has expired",
    ),
    "TLSV1_UNRECOGNIZED_NAME": (
        Handshake.REFUSED, "the {far} has no certificate for the name that it was told",
    ),
    "TLSV1_ALERT_INTERNAL_ERROR": (
        Handshake.REFUSED, "the {far} failed (its alert internal_error)",
    ),
    "UNEXPECTED_MESSAGE": (
        Handshake.OTHER, "the {far} broke the order of the handshake",
    ),
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": _FORGED,
    "BAD_RECORD_MAC": _FORGED,
    "SSLV3_ALERT_BAD_RECORD_MAC": (
        Handshake.OTHER, "to the {far} a record of ours was damaged or forged",
    ),
    "NO_RENEGOTIATION": (
        Handshake.OTHER, "the {far} wants to negotiate anew, which is not done here",
    ),
}


def failed(reason: str, far: str) -> TlsFault:
    """A handshake failed, or a record is none, by OpenSSL's reason."""
    known = _REASONS.get(reason)
    if known is not None:
        return TlsFault(Fault.TLS, known[1].format(far=far), known[0])
    words = reason.lower().replace("_", " ")
    kind = Handshake.REFUSED if "_ALERT_" in reason else Handshake.OTHER
    return TlsFault(Fault.TLS, f"TLS with the {far} failed: {words}", kind)


# --- Names of certificates ------------------------------------------------------------------------

# RFC 4514 3, and what OpenSSL adds: long names as Python has them.
_SHORT = {
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "street",
    "domainComponent": "DC",
    "userId": "UID",
}
_SPECIAL = '"+,;<>\\'


def subject_text(rdns: tuple[tuple[tuple[str, str], ...], ...]) -> str:
    """RFC 4514 2: the last relative name first."""
    return ",".join(
        "+".join(f"{_SHORT.get(kind, kind)}={_escaped(value)}" for kind, value in rdn)
        for rdn in reversed(rdns)
    )


def _escaped(value: str) -> str:
    text = "".join(f"\\{sign}" if sign in _SPECIAL else sign for sign in value)
    text = text.replace("\0", "\\00")
    if text.endswith(" "):
        text = text[:-1] + "\\ "
    return f"\\{text}" if text.startswith((" ", "#")) else text
