"""The route table as every room sees it: checked, resolved, frozen.

What an operator writes is read and refused in `control/config.py`; this is what comes out of it.
Field names are the table's keys. Times are seconds, sizes bytes; "off" is 0 for both. Nothing
here opens, resolves or decides.
"""

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address

from gateway.events import Address, TlsClient, TlsServer

Network = IPv4Network | IPv6Network

SECURED = {"wss": "ws", "tls": "tcp"}    # schemes with TLS, and what is inside of it


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """`[gateway]`."""

    engine: str = "auto"
    ring: str = "auto"                   # how relays move on io_uring: completions or readiness
    workers: int = 0                     # processes; 0: "auto", the CPUs this one may use
    pin: bool = False                    # each worker to one CPU
    admin: Address | None = None         # health and metrics; None: nowhere
    control: str | None = ""             # its socket's file; "": the usual place; None: nowhere
    drain: float = 30.0
    drain_delay: float = 0.0             # from "not ready" to the end of accepting
    log: str = "text"
    log_query: bool = False
    max_sessions: int = 0                # per worker; 0: (RLIMIT_NOFILE - 512) / 2
    trusted_proxies: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """A certificate with what it is signed by, and its key: two PEM files, by absolute names."""

    chain: str
    key: str

    def __str__(self) -> str:
        return self.chain


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerTls:
    """`tls` of a `[[listener]]`, as written. What is in the files is in `Listener.secure`."""

    certificates: tuple[CertificateFiles, ...]  # the first is for names that none is for
    profile: str = "intermediate"        # intermediate | modern
    client_certificates: str = "off"     # off | request | require
    client_ca: str = ""                  # who signs them: a PEM file


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamTls:
    """`tls` of an `[upstream.NAME]`, as written. See `EndpointEntry.secure`."""

    verify: bool = True
    ca: str = ""                         # a PEM file; "": the system's store
    server_name: str = ""                # "": the URL's host
    certificate: CertificateFiles | None = None  # ours, where they ask for one


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """`[[listener]]`, or one entry of `listen`."""

    address: Address
    mode: int = 0o660                    # of a Unix socket's file
    backlog: int = 4096
    head_timeout: float = 10.0           # from accept to the end of the whole head
    keepalive_timeout: float = 60.0      # between two exchanges on one connection
    max_head: int = 16 * 1024
    handshakes: float = 0.0              # a second, over all workers
    redirect: int = 0                    # the port of https that every request is sent to
    tls: ListenerTls | None = None
    # What `tls` comes to once its files are read; no word of the table, and never shown.
    secure: TlsServer | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointEntry:
    """One entry of `endpoints`: a name or literal, not resolved. Each address gets `weight`."""

    url: str                             # as written, for messages and records
    host: str = ""                       # name or IP literal; "" for a Unix socket or a builtin
    port: int = 0
    unix: str = ""
    weight: int = 1
    secure: TlsClient | None = field(default=None, compare=False, repr=False)  # as Listener's

    @property
    def has_name(self) -> bool:
        """True where a name server is asked for the address."""
        try:
            ip_address(self.host)
        except ValueError:
            return bool(self.host)
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """`[upstream.NAME]`; a URL written in a route is one with a single entry, named by its URL."""

    name: str
    scheme: str                          # ws | wss | tcp | tls | builtin
    builtin: str = ""                    # echo | page
    entries: tuple[EndpointEntry, ...] = ()
    path: str = ""                       # "" or "/": the client's own path
    balance: str = "least-connections"   # round-robin | least-connections | random-two | hash
    hash_on: str = "address"             # or path:NAME | query:NAME | header:NAME | cookie:NAME
    source_addresses: tuple[str, ...] = ()  # IP literals of ours to connect from; (): any
    resolve: float = 30.0                # from one look-up of its names to the next
    tls: UpstreamTls | None = None       # where the scheme is wss or tls, and only there

    @property
    def kind(self) -> str:
        """What it speaks, inside of TLS if that is there: ws | tcp | echo | page."""
        return self.builtin or SECURED.get(self.scheme, self.scheme)

    @property
    def own_path(self) -> str:
        """The path that replaces the client's, or "" where the client's passes."""
        return "" if self.path == "/" else self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """One entry of `origins`. `host` may begin with one "*."; `null` is the opaque origin."""

    scheme: str = ""
    host: str = ""
    port: int = 0                        # the scheme's default is filled in; 0 where it has none
    null: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """`[[route]]` with `[defaults]` filled in."""

    name: str
    place: str = field(default="", compare=False)  # "routes.toml, [[route]] 3", for messages
    hosts: tuple[str, ...] = ()          # lower case; () is any; "*.example.com" is a wildcard
    path: str = "/*"                     # as written
    headers: tuple[tuple[str, str], ...] = ()      # name in lower case, value or "*"
    query: tuple[tuple[str, str], ...] = ()
    subprotocol: str = ""
    sni: tuple[str, ...] = ()            # as `hosts`, of the name in the TLS hello
    origins: tuple[Origin, ...] | None = None      # None is any
    upstream: str = ""                   # a key of Table.upstreams
    rewrite: str = ""
    send_host: str = ""                  # "": as the client sent it; "upstream"; else the value
    set_fields: tuple[tuple[str, str], ...] = ()
    remove_fields: tuple[str, ...] = ()  # lower case
    subprotocols: tuple[str, ...] = ()   # what we may choose, where we are the endpoint (`tcp`)
    frames: str = "binary"               # binary | text: what comes down from a `tcp` upstream
    max_message: int = 0
    max_frame: int = 0
    max_queue: int = 256 * 1024
    max_sessions: int = 0
    max_sessions_per_client: int = 0
    handshakes: float = 0.0              # a second, over all workers
    connect_timeout: float = 2.0
    answer_timeout: float = 15.0
    idle_timeout: float = 0.0
    write_timeout: float = 30.0
    close_timeout: float = 5.0
    session_timeout: float = 0.0
    session_code: int = 1000
    heartbeat: float = 30.0
    heartbeat_timeout: float = 20.0
    drain_code: int = 1001
    drain_reason: str = "gateway is going away"
    reload_drain: float = 0.0            # off: sessions stay on the terms they began with


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Everything that one run of the gateway obeys."""

    gateway: GatewaySettings = GatewaySettings()
    listeners: tuple[Listener, ...] = ()
    routes: tuple[Route, ...] = ()       # in the order of the files
    upstreams: dict[str, Upstream] = field(default_factory=dict)
