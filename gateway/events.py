"""Events up, commands down: all that the engine and a session ever say to each other.

- An event is a fact from the engine, in the past tense. Its `at` is the engine's clock in
  seconds (monotonic; virtual in the memory engine): the only time that policy and protocol know.
- A command is an order from a session to the worker, in the imperative. A session does not know
  link numbers: it says which `Side` it means, and the worker knows the link.

Both are frozen and slotted. Nothing else crosses the seam.

What one connection makes some forty of is frozen for the type checker alone: what freezes a
dataclass at run time is `object.__setattr__` for each field, which makes it four times as dear.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar, dataclass_transform

from gateway.errors import Blame, Fault, Handshake

_Class = TypeVar("_Class")

Link = int  # the engine's number for one byte stream; never reused while anybody may mean it


@dataclass_transform(frozen_default=True)
def _word(*, kw_only: bool = False) -> Callable[[type[_Class]], type[_Class]]:
    """A class whose objects never change, by the word of the type checker."""
    return dataclass(slots=True, unsafe_hash=True, kw_only=kw_only)


class Side(enum.IntEnum):
    """A session has two links: the client's, and, from `Connect` on, the upstream's."""

    CLIENT = 0
    UPSTREAM = 1

    __hash__ = int.__hash__              # Enum's own is slow, and this one is in many keys

    @property
    def other(self) -> "Side":
        """The side across the relay."""
        return Side.UPSTREAM if self is Side.CLIENT else Side.CLIENT

    @property
    def blame(self) -> Blame:
        """Whose doing it is when this side ends things."""
        return Blame.CLIENT if self is Side.CLIENT else Blame.UPSTREAM


# Up to Python 3.11 these take a tenth of the time of `Side.CLIENT`: the class of an enum has a
# `__getattr__` there.
CLIENT: Final = Side.CLIENT
UPSTREAM: Final = Side.UPSTREAM


@_word()
class Address:
    """Where a socket is: an IP literal and port, a Unix path, or a built-in endpoint.

    Exactly one of `host`, `path`, `builtin` is meant; a client on a Unix socket has an empty
    `path` and no host. IPv6 literals are written without brackets here, with them in `str()`.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    builtin: str = ""

    @property
    def is_unix(self) -> bool:
        """True for a Unix socket, also for the nameless client end of one."""
        return not self.host and not self.builtin

    def overlap(self, other: "Address") -> "Address | None":
        """The one of the two that has the other in it: who listens on both must share the port.
        The families do not overlap, since our IPv6 sockets are IPv6 only."""
        if not self.port or self.port != other.port or (":" in self.host) != (":" in other.host):
            return None
        return next((each for each in (self, other) if each.host in ("0.0.0.0", "::")), None)

    def __str__(self) -> str:
        if self.builtin:
            return f"builtin:{self.builtin}"
        if not self.host:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# --- The relay's terms and its outcome -------------------------------------------------------


class Cause(enum.Enum):
    """Why a relay ended. The farewells for each are in `gateway.relaying.FAREWELLS`."""

    CLOSED = "closed"                    # Close frames passed
    FINISHED = "finished"                # FIN without Close, between two frames
    CUT = "cut"                          # FIN inside a frame
    LOST = "lost"                        # RST, or the kernel gave the link up
    SILENT = "silent"                    # no sign of life after a ping
    STALLED = "stalled"                  # write_timeout: took no byte
    UNANSWERED = "unanswered"            # close_timeout: a Close or FIN that was never answered
    FRAMING = "framing"                  # RFC 6455 framing broken: 1002
    TEXT = "text"                        # not UTF-8: 1007
    TOO_BIG = "too big"                  # max_message or max_frame: 1009
    POLICY = "policy"                    # another limit: 1008
    IDLE = "idle timeout"
    SESSION_TIMEOUT = "session timeout"
    DRAIN = "drain"
    KILLED = "killed"                    # ended at once: SIGINT, or the end of a drain
    DISMISSED = "dismissed"              # this one session was ended by order of the operator
    TRUNCATED = "truncated"              # TLS: FIN without close_notify, and no Close before it


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayRules:
    """What one relay obeys, fixed when it begins. Sizes in bytes, times in seconds, 0 is off."""

    raw: bool = False                    # the upstream is a byte stream without frames (`tcp`)
    raw_text: bool = False               # what comes down from it is wrapped in text frames
    deflate: bool = False                # permessage-deflate was negotiated: RSV1 may be set
    max_message: int = 0                 # payload bytes of one message, as sent (RFC 6455 5.4)
    max_frame: int = 0                   # payload bytes of one frame
    max_queue: int = 256 * 1024          # bytes that wait for one side before the other is held
    idle_timeout: float = 0.0            # no byte from either side
    write_timeout: float = 30.0          # a side took no byte though some waited
    close_timeout: float = 5.0           # for the answer to a Close or FIN, and to linger
    session_timeout: float = 0.0         # from the start of the relay
    session_code: int = 1000             # what the client is told then
    heartbeat: float = 0.0               # a side that is quiet so long is pinged
    heartbeat_timeout: float = 20.0      # for any byte after that ping
    drain_code: int = 1001               # what the client is told at a drain
    drain_reason: str = ""

    def __hash__(self) -> int:
        """Of a few fields: it is asked for at each relay, and few rules are alive at a time."""
        return hash((self.raw, self.deflate, self.max_message, self.heartbeat, self.drain_reason))


@_word(kw_only=True)
class LegCounts:
    """What came from one side of a relay, and what was said to it."""

    bytes_in: int = 0                    # from this side, headers included
    bytes_out: int = 0                   # taken by the kernel toward this side
    frames: int = 0                      # whole headers from this side, control frames included
    messages: int = 0                    # finished data messages from this side
    payload: int = 0                     # payload bytes of data frames from this side
    copied: int = 0                      # bytes from this side that went through user space
    spliced: int = 0                     # bytes from this side that never did
    not_spliced: str = ""                # why nothing was spliced; "" if something was
    ktls: str = ""                       # "on": TLS is the kernel's; else why not (docs/ktls.md)
    close_received: int | None = None    # code of this side's Close; 1005 if it had none
    close_sent: int | None = None        # code of the Close that this side was sent, likewise
    cut: bool = False                    # this side was reset while bytes or a farewell waited
    pings_sent: int = 0                  # heartbeats of our own to this side
    round_trip: float | None = None      # seconds, of the last heartbeat that was answered


NO_COUNTS: Final = (LegCounts(), LegCounts())    # where there was no relay
# --- TLS --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A certificate with its key, and whom it is for."""

    chain: bytes                         # PEM: the certificate, then those that signed it
    key: bytes = field(repr=False)       # PEM, not encrypted
    names: tuple[str, ...] = ()          # lower case; "*.x" stands for exactly one label


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class TlsServer:
    """How a listener speaks TLS. Each object is itself alone: engines keep what they make of it
    for as long as it lives, so one is made for a listener, not one for a connection."""

    certificates: tuple[KeyPair, ...]    # by SNI: exact, then wildcard; the first for all else
    profile: str = "intermediate"        # or "modern": Mozilla's, TLS 1.2 and 1.3, or 1.3 alone
    client_certificates: str = "off"     # "request": verified if one is given; "require"
    client_ca: bytes = b""               # PEM: who may have signed them
    # 80 bytes each: 16 of name, 32 for the HMAC, 32 for AES-256; the first makes tickets, all are
    # understood. None: no tickets.
    ticket_keys: tuple[bytes, ...] = field(default=(), repr=False)
    alpn: tuple[str, ...] = ("http/1.1",)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class TlsClient:
    """How an upstream is spoken to in TLS. As with `TlsServer`, one is made for an upstream."""

    server_name: str                     # told by SNI unless it is an IP address, and verified
    verify: bool = True
    ca: bytes = b""                      # PEM; b"": the store of the system
    chain: bytes = b""                   # PEM: the client's own certificate, if one is to be shown
    key: bytes = field(default=b"", repr=False)
    alpn: tuple[str, ...] = ("http/1.1",)


# --- Events: engine to worker -----------------------------------------------------------------


@_word()
class Event:
    """A fact about one link."""

    at: float
    link: Link


@_word()
class Accepted(Event):
    """A client came in on `listener`. Nothing is read until `read`."""

    listener: int
    client: Address
    local: Address


@_word()
class Connected(Event):
    """The link that `connect` gave is established."""


@_word()
class ConnectFailed(Event):
    """The link that `connect` gave never came to be; its `Closed` follows at once."""

    fault: Fault


@_word()
class Received(Event):
    """Bytes in order of arrival; never empty."""

    data: bytes


@_word()
class Finished(Event):
    """The far end has finished sending (FIN). Sending to it still works."""


@_word()
class Clogged(Event):
    """More than the high mark is queued for this link."""


@_word()
class Cleared(Event):
    """After `Clogged`: half of the high mark or less is queued."""


@_word()
class TimedOut(Event):
    """The link's timer of this name is due."""

    name: str


@_word()
class Closed(Event):
    """The link is gone, and its number is never said again. `fault` is None if it was ordered.

    `detail` is one plain sentence for the record, where there is more to say than the fault does:
    why a handshake failed, what to do about it. `handshake` is why one failed, for the counters;
    None where none did.
    """

    fault: Fault | None
    detail: str = ""
    handshake: Handshake | None = None


@_word()
class PeerCertificate:
    """The far end's certificate, which was verified unless the settings said not to.

    `names` are its subject alternative names, as "DNS:a.example", "IP:192.0.2.1",
    "EMAIL:a@a.example", "URI:spiffe://a.example/b"; kinds other than these four are left out.
    """

    subject: str                         # RFC 4514 text, "CN=a,O=b"; "" if it is empty
    names: tuple[str, ...]
    der: bytes = field(repr=False)


@_word(kw_only=True)
class Secured(Event):
    """The handshake that `secure` began is done; from here on the link's bytes are clear text."""

    server_name: str = ""                # the client's SNI, lower case; toward an upstream ours
    protocol: str = ""                   # what ALPN chose; "" if nothing
    version: str = ""                    # "TLSv1.2", "TLSv1.3"
    cipher: str = ""                     # OpenSSL's name
    resumed: bool = False                # by a ticket or a session id: no certificates went over
    certificate: PeerCertificate | None = None


@_word(kw_only=True)
class RelayEnded(Event):
    """A relay is over; `link` is the client's. `Closed` for both links follows in this batch.

    `side` is whose doing it was, None for the gateway's own (drain, timeouts of the session).
    """

    upstream: Link
    cause: Cause
    side: Side | None
    detail: str                          # one sentence for the record: what exactly was wrong
    counts: tuple[LegCounts, LegCounts]  # from the client, from the upstream


@_word()
class AcceptPaused(Event):
    """The listener `link` waits, since no descriptor or memory is free; nobody is dropped."""

    fault: Fault


@_word()
class AcceptResumed(Event):
    """The listener `link` accepts again."""


# --- Commands: session to worker --------------------------------------------------------------


@_word()
class Command:
    """An order."""


@_word()
class Connect(Command):
    """Open the upstream link, from this IP address of ours if one is said. A `builtin` address is
    served in this process."""

    address: Address
    source: str = ""


@_word()
class Secure(Command):
    """TLS from here on, as a server toward the client or as a client toward the upstream, begun
    with these bytes that were received. Answered by `Secured`, or by `Closed` with its detail."""

    side: Side
    settings: TlsServer | TlsClient
    received: bytes = b""


@_word()
class Read(Command):
    """Deliver what arrives on this side."""

    side: Side


@_word()
class Hold(Command):
    """Deliver nothing more from this side until `Read`."""

    side: Side


@_word()
class Send(Command):
    """Send these bytes."""

    side: Side
    data: bytes


@_word()
class Relay(Command):
    """Move the stream both ways from here on; these early bytes of each side come first."""

    rules: RelayRules
    from_client: bytes = b""
    from_upstream: bytes = b""


@_word()
class End(Command):
    """End the relay with the farewell for this cause; with `code` and `reason` in place of the
    route's `drain_code` and `drain_reason`, where a code is given."""

    cause: Cause
    code: int = 0
    reason: str = ""


@_word()
class Finish(Command):
    """Half-close after what is queued: FIN."""

    side: Side


@_word()
class Close(Command):
    """Close after what is queued, and these last bytes."""

    side: Side
    last: bytes = b""


@_word()
class Reset(Command):
    """Close at once, with RST. For the upstream: forget that link; another may be opened."""

    side: Side


@_word()
class SetTimer(Command):
    """`TimedOut(name)` for the client side at the engine's time `at`; replaces one of that name."""

    name: str
    at: float


@_word()
class ClearTimer(Command):
    """No `TimedOut(name)` any more; harmless where there is none."""

    name: str


@dataclass(slots=True, kw_only=True)
class AccessRecord:
    """One line for a session's end, or for one exchange that was no upgrade. Times in seconds.

    Filled in by its session, and not touched any more once it is given away in `Record`.
    """

    session: str                         # id, also in the answer's body where we refuse
    client: str                          # address as believed, see trusted_proxies
    peer: str                            # address of the socket's far end
    listener: str
    method: str = ""
    host: str = ""
    path: str = ""                       # without the query
    query: str = ""                      # written only where the table has log_query
    route: str = ""
    endpoint: str = ""
    phase: str = ""                      # the state reached
    status: int | None = None            # the answer's status; 101 for a relay
    cause: str = ""                      # of a relay's end
    blame: Blame | None = None
    detail: str = ""
    subprotocol: str = ""
    tls: str = ""                        # the version toward the client; "" without TLS
    sni: str = ""                        # the name in the client's hello
    handshake: Handshake | None = None   # why that of TLS with the client failed
    counts: tuple[LegCounts, LegCounts] = NO_COUNTS
    started: float = 0.0                 # engine clock at accept, or at the exchange's first byte
    ended: float = 0.0
    phases: tuple[tuple[str, float], ...] = ()  # seconds in each phase, in order


@_word()
class Record(Command):
    """Write this access record."""

    record: AccessRecord
