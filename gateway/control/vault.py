"""What is secret of a table: read from its files, put into it, and renewed.

Laws of this file:

- What reads certificates is loaded only where a table has TLS: it takes as long as all the rest.
- Secrets go to workers by the channel, and nowhere else.

Never: a decision when. The reloader and the steering ask.
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gateway.control.tickets import Tickets
from gateway.events import TlsClient, TlsServer
from gateway.table import CertificateFiles, Table, Upstream

if TYPE_CHECKING:
    from gateway.control.certificates import Expiry

_Settings = TypeVar("_Settings", TlsServer, TlsClient)


class Vault:
    """`fill` each new table; `renew` what it is to have from time to time."""

    def __init__(self, *, tickets: bool) -> None:
        """`tickets`: the engine can seal them with keys that all workers share."""
        self._tickets = Tickets() if tickets else None

    def fill(self, table: Table, last: Table | None = None) -> tuple[Table, list[str]]:
        """The table with what its TLS files hold, and sentences of what is kept as it was in
        `last`, since it is broken now. Raises TableErrors for what never was good."""
        if not has_tls(table):
            return table, []
        from gateway.control.certificates import secured  # noqa: PLC0415 - see the module's laws

        return secured(table, self._tickets, last)

    def renew(self, table: Table) -> Table | None:
        """The table with new keys for tickets; None where it has none."""
        if self._tickets is None or not any(one.secure for one in table.listeners):
            return None
        from gateway.control.certificates import with_tickets  # noqa: PLC0415 - likewise

        self._tickets.rotate()
        return with_tickets(table, self._tickets)


def has_tls(table: Table) -> bool:
    """Whether anything of it is for TLS."""
    return any(one.tls is not None for one in table.listeners) or any(
        one.tls is not None for one in table.upstreams.values()
    )


def files_of(table: Table) -> tuple[Path, ...]:
    """Every file that the table's TLS names, once each."""
    names: list[str] = []
    pairs: list[CertificateFiles] = []
    for listener in table.listeners:
        if listener.tls is not None:
            pairs += listener.tls.certificates
            names.append(listener.tls.client_ca)
    for upstream in table.upstreams.values():
        if upstream.tls is not None:
            pairs += [upstream.tls.certificate] if upstream.tls.certificate is not None else []
            names.append(upstream.tls.ca)
    names += [name for pair in pairs for name in (pair.chain, pair.key)]
    return tuple(Path(name) for name in dict.fromkeys(names) if name)


def expiries(table: Table) -> "list[Expiry]":
    """Until when the certificates of a filled table are good."""
    if not has_tls(table):
        return []
    from gateway.control import certificates  # noqa: PLC0415 - likewise

    return certificates.expiries(table)


def alike(one: TlsServer | TlsClient | None, other: TlsServer | TlsClient | None) -> bool:
    """Whether two settings say the same. They are equal only to themselves, since engines keep
    what they make of one."""
    if one is None or other is None:
        return one is other
    return type(one) is type(other) and all(
        getattr(one, field.name) == getattr(other, field.name) for field in fields(one)
    )


def reused(table: Table, last: Table) -> Table:
    """The table with the settings of `last` in place of those that say the same: what an engine
    has made of them goes on."""
    servers = [one.secure for one in last.listeners if one.secure is not None]
    clients = [
        entry.secure for one in last.upstreams.values() for entry in one.entries
        if entry.secure is not None
    ]

    def upstream(one: Upstream) -> Upstream:
        if one.tls is None:
            return one
        return replace(one, entries=tuple(
            replace(entry, secure=_first_alike(entry.secure, clients)) for entry in one.entries
        ))

    return replace(
        table,
        listeners=tuple(
            replace(one, secure=_first_alike(one.secure, servers)) for one in table.listeners
        ),
        upstreams={name: upstream(one) for name, one in table.upstreams.items()},
    )


def _first_alike(wanted: _Settings | None, known: list[_Settings]) -> _Settings | None:
    return next((one for one in known if alike(one, wanted)), wanted)
