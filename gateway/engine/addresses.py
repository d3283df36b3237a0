"""Addresses, as events have them and as the socket module has them. No name is ever resolved."""

import socket

from gateway.events import Address


def family_of(address: Address) -> int:
    """The socket family for an address."""
    if address.is_unix:
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET


def target_of(address: Address) -> str | tuple[str, int]:
    """The address as the socket module has it."""
    return address.path if address.is_unix else (address.host, address.port)


def address_of(name: object) -> Address:
    """An address from what getsockname(2) or getpeername(2) gave. An IPv4 client of a dual-stack
    listener shows as the IPv4 client it is (RFC 4291 2.5.5.2)."""
    if isinstance(name, tuple):
        host = str(name[0])
        if host.startswith("::ffff:") and "." in host:
            host = host.removeprefix("::ffff:")
        return Address(host=host, port=int(name[1]))
    return Address(path=name if isinstance(name, str) else "")
