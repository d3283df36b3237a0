"""The one exception tree, and the faults that are no exceptions.

Every error knows whose fault it was, and what it is answered with: an HTTP status before the
upgrade, a close code after it, an exit code before anything runs.

Laws of this file:

- Untrusted bytes raise only `ClientError` and `UpstreamError`, and only inside the protocol
  layer, which turns them into an answer. Nothing of theirs reaches the worker.
- Engines never raise because of the network. What the kernel reports becomes a `Fault`, by one
  table for all engines (`fault_of`), and travels in an event.
- A bug is an `AssertionError`. It is never caught to carry on.

    GatewayError
    ├── ClientError         the client's bytes or wishes: answered with `status`
    ├── UpstreamError       the upstream's bytes or silence: answered with `status`
    ├── TableError          the operator's table: exit code 1
    ├── StartFailed         a worker that cannot begin: exit code 1
    ├── ListenError         an address that cannot be bound: exit code 3
    ├── EngineRefused       the engine the table demands cannot run: exit code 5
    └── NoAnswer            nobody answers at a control socket: exit code 6
"""

import enum
import errno


class Blame(enum.Enum):
    """Whose doing an end or an error was."""

    CLIENT = "client"
    UPSTREAM = "upstream"
    GATEWAY = "gateway"
    OPERATOR = "operator"


class GatewayError(Exception):
    """The root of the tree; never raised itself."""

    blame = Blame.GATEWAY
    exit_code = 1
    may_pass = False          # the same may go well later, with nothing changed by who asks


class ClientError(GatewayError):
    """A request that is refused. Answer it with `status` and `fields`, then close.

    `detail` is one short sentence that is safe to show to a stranger (it never quotes an
    upstream); the same sentence stands in the access record.
    """

    blame = Blame.CLIENT

    def __init__(self, status: int, detail: str, fields: tuple[tuple[bytes, bytes], ...] = ()):
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.fields = fields


class UpstreamError(GatewayError):
    """An upstream's answer that cannot be used. Answer the client with `status` (502 or 504).

    `detail` goes to the access record only; the client gets a fixed sentence.
    """

    blame = Blame.UPSTREAM

    def __init__(self, status: int, detail: str):
        super().__init__(detail)
        self.status = status
        self.detail = detail


class TableError(GatewayError):
    """One mistake in a route table: where, what was found, what was expected, what to do.

    `str()` gives the message as operators read it. Several mistakes come as `TableErrors`.
    """

    blame = Blame.OPERATOR
    exit_code = 1

    def __init__(self, place: str, found: str, expected: str, remedy: str = ""):
        self.place = place
        self.found = found
        self.expected = expected
        self.remedy = remedy
        text = f"{place}: found {found}, expected {expected}"
        super().__init__(f"{text}; {remedy}" if remedy else text)


class TableErrors(GatewayError):
    """All mistakes of one table, in the order of the files. Never empty."""

    blame = Blame.OPERATOR
    exit_code = 1

    def __init__(self, errors: list[TableError]):
        assert errors
        self.errors = errors
        super().__init__("\n".join(str(error) for error in errors))


class StartFailed(GatewayError):
    """A worker ended before it served; the message says how."""


class ListenError(GatewayError):
    """An address that cannot be bound; the message names it, the cause and the remedy."""

    blame = Blame.OPERATOR
    exit_code = 3
    may_pass = True           # who has it may end, an interface come, a descriptor be free


class EngineRefused(GatewayError):
    """The engine that the table demands cannot run here; the message says why."""

    blame = Blame.OPERATOR
    exit_code = 5


class NoAnswer(GatewayError):
    """No running gateway answers a command; the message says where it was looked for."""

    blame = Blame.OPERATOR
    exit_code = 6


class Fault(enum.Enum):
    """What the kernel said of a link, the same on every engine."""

    REFUSED = "refused"              # nothing listens there
    RESET = "reset"                  # RST, or a write after one
    TIMED_OUT = "timed out"          # the kernel gave up (keep-alive, TCP_USER_TIMEOUT, SYN)
    UNREACHABLE = "unreachable"      # no route, network or host down
    NOT_FOUND = "not found"          # no such Unix socket
    NOT_PERMITTED = "not permitted"  # a Unix socket or a port that this user may not use
    NO_ADDRESS = "no free address"   # ephemeral ports are used up
    NO_DESCRIPTORS = "no free file descriptor"
    NO_MEMORY = "no memory"
    TLS = "tls"                      # no handshake, or a record that is none: see `Closed.detail`
    TLS_KEYS = "tls keys"            # TLS, and new ones that this kernel does not take (KeyUpdate)
    TRUNCATED = "truncated"          # TLS, and FIN without close_notify (RFC 8446 6.1)
    OVERFLOW = "queue overflow"      # more was sent to a link than its limit; a bug of the caller
    OTHER = "other"                  # not in the table below: a kernel we do not know


class Handshake(enum.Enum):
    """Why a TLS handshake failed: what is counted, so there are few. Words are in the detail."""

    NOT_TLS = "not tls"              # plain HTTP, or nothing that is known
    VERSION = "version"              # none in common: SSLv3, TLS 1.0, or 1.2 where only 1.3 is
    CIPHER = "cipher"                # no cipher, group or signature in common
    NO_CERTIFICATE = "no certificate"  # the client showed none, and must
    UNTRUSTED = "untrusted"          # the far end's certificate does not hold
    REFUSED = "refused"              # by the far end, with an alert: our certificate, mostly
    LEFT = "left"                    # FIN or RST in the middle
    TIMED_OUT = "timed out"
    OTHER = "other"


_FAULTS = {
    errno.ECONNREFUSED: Fault.REFUSED,
    errno.ECONNRESET: Fault.RESET,
    errno.ECONNABORTED: Fault.RESET,
    errno.EPIPE: Fault.RESET,
    errno.ENOTCONN: Fault.RESET,
    errno.ESHUTDOWN: Fault.RESET,
    errno.ETIMEDOUT: Fault.TIMED_OUT,
    errno.EHOSTUNREACH: Fault.UNREACHABLE,
    errno.ENETUNREACH: Fault.UNREACHABLE,
    errno.EHOSTDOWN: Fault.UNREACHABLE,
    errno.ENETDOWN: Fault.UNREACHABLE,
    errno.ENOENT: Fault.NOT_FOUND,
    errno.ENOTDIR: Fault.NOT_FOUND,
    errno.EACCES: Fault.NOT_PERMITTED,
    errno.EPERM: Fault.NOT_PERMITTED,
    errno.EADDRNOTAVAIL: Fault.NO_ADDRESS,
    errno.EMFILE: Fault.NO_DESCRIPTORS,
    errno.ENFILE: Fault.NO_DESCRIPTORS,
    errno.ENOMEM: Fault.NO_MEMORY,
    errno.ENOBUFS: Fault.NO_MEMORY,
}


def fault_of(number: int) -> Fault:
    """The fault for an errno; `Fault.OTHER` where the table has none."""
    return _FAULTS.get(number, Fault.OTHER)
