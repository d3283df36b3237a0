"""What the engine takes for granted of the kernel's TLS, on two ends of one connection."""

import contextlib
import fcntl
import hashlib
import os
import random
import select
import socket
from collections.abc import Iterator
from itertools import product

import pytest

from gateway.engine import ktls
from gateway.engine.ktls import AES_128, SUITES, TLS_1_2, TLS_1_3, TLS_RX, TLS_TX

ALERT, HANDSHAKE = b"\x15", b"\x16"
SET_TYPE, GET_TYPE = 1, 2
CLOSE_NOTIFY = b"\x01\x00"
SPLICE = 3                          # SPLICE_F_MOVE | SPLICE_F_NONBLOCK
BOTH = list(product((TLS_1_2, TLS_1_3), SUITES))

Pair = tuple[socket.socket, socket.socket]


def secured(version: str = TLS_1_3, suite: ktls.Suite = AES_128) -> Pair:
    """Two ends, not blocking, whose kernels share keys both ways."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        two, _ = listener.accept()
    for end in (one, two):
        end.setblocking(False)
        end.setsockopt(socket.IPPROTO_TCP, ktls.TCP_ULP, ktls.ULP)
    for sender, receiver in ((one, two), (two, one)):
        info = ktls.crypto_info(version, suite, ktls._trial_keys(suite, version), 5)
        ktls.give(sender, TLS_TX, info)
        ktls.give(receiver, TLS_RX, info)
    return one, two


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, two = secured()
    with one, two:
        yield one, two


def say(sock: socket.socket, kind: bytes, content: bytes) -> None:
    """A record that is no data."""
    sock.sendmsg([content], [(ktls.SOL_TLS, SET_TYPE, kind)])


def hear(sock: socket.socket) -> tuple[bytes, bytes]:
    """The type of the next record, and its content."""
    content, told, _, _ = sock.recvmsg(65536, 64)
    return told[0][2], content


def test_all_ciphers_are_taken_in_both_versions() -> None:
    assert ktls.support().ciphers == frozenset(BOTH)


@pytest.mark.parametrize(("version", "suite"), BOTH)
def test_what_one_seals_the_other_opens(version: str, suite: ktls.Suite) -> None:
    """Both ways, from any number of a record on."""
    one, two = secured(version, suite)
    with one, two:
        for sender, receiver in ((one, two), (two, one)):
            for data in (b"a", b"b" * 16384, b"c" * 100):
                sender.send(data)
                assert receiver.recv(65536) == data


def test_a_record_that_is_no_data_is_an_error_until_its_type_is_asked_for(pair: Pair) -> None:
    """EIO of recv, also when it only peeks, EINVAL of splice; it stays, and what is before it
    comes first."""
    one, two = pair
    one.send(b"before")
    say(one, ALERT, CLOSE_NOTIFY)
    assert two.recv(100) == b"before"
    with pytest.raises(OSError, match="Input/output error"):
        two.recv(100, socket.MSG_PEEK)
    with pytest.raises(OSError, match="Input/output error"):
        two.recv(100)
    reading, writing = os.pipe()
    with pytest.raises(OSError, match="Invalid argument"):
        os.splice(two.fileno(), writing, 100, flags=SPLICE)
    for end in (reading, writing):
        os.close(end)
    assert hear(two) == (ALERT, CLOSE_NOTIFY)
    with pytest.raises(BlockingIOError):
        two.recv(100)


def test_what_stands_behind_a_record_is_told_by_an_edge(pair: Pair) -> None:
    """A record is read to its end by one recv, and the next one is an edge of its own, also where
    both came in one segment."""
    one, two = pair
    poller = select.epoll()
    with poller:
        poller.register(two, select.EPOLLIN | select.EPOLLET)
        one.send(b"data")
        say(one, ALERT, CLOSE_NOTIFY)
        assert poller.poll(10)
        assert two.recv(100) == b"data"
        assert poller.poll(10)
        assert hear(two) == (ALERT, CLOSE_NOTIFY)


def test_keys_may_come_when_records_wait_already() -> None:
    """They are told by an edge then."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        two, _ = listener.accept()
    info = ktls.crypto_info(TLS_1_3, AES_128, ktls._trial_keys(AES_128, TLS_1_3), 0)
    with one, two, select.epoll() as poller:
        one.setsockopt(socket.IPPROTO_TCP, ktls.TCP_ULP, ktls.ULP)
        ktls.give(one, TLS_TX, info)
        one.send(b"early")
        poller.register(two, select.EPOLLIN | select.EPOLLET)
        assert poller.poll(10)
        two.setsockopt(socket.IPPROTO_TCP, ktls.TCP_ULP, ktls.ULP)
        ktls.give(two, TLS_RX, info)
        assert poller.poll(10)
        assert two.recv(100) == b"early"


def test_a_fin_is_0_with_or_without_close_notify(pair: Pair) -> None:
    one, two = pair
    say(one, ALERT, CLOSE_NOTIFY)
    one.shutdown(socket.SHUT_WR)
    assert hear(two) == (ALERT, CLOSE_NOTIFY)
    assert two.recv(100) == b""
    two.shutdown(socket.SHUT_WR)
    assert one.recv(100) == b""


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize("room", [4096, 65536, 262144])
def test_a_splice_loses_nothing_where_the_pipe_is_full(version: str, room: int) -> None:
    """Out of records of all sizes, and into others."""
    chosen = random.Random(room)
    data = chosen.randbytes(1_000_000)
    one, two = secured(version)
    three, four = secured(version)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, room)
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    sent = held = 0
    got = bytearray()

    def turn() -> None:
        nonlocal sent, held
        if sent < len(data):
            sent += one.send(data[sent : sent + chosen.randrange(1, 40_000)])
        held += os.splice(two.fileno(), writing, 300_000, flags=SPLICE)

    def other_turn() -> None:
        nonlocal held
        while held:
            held -= os.splice(reading, three.fileno(), held, flags=SPLICE)

    with one, two, three, four:
        while len(got) < len(data):
            for step in (turn, turn, other_turn, lambda: got.extend(four.recv(65536))):
                with contextlib.suppress(BlockingIOError):
                    step()
    for end in (reading, writing):
        os.close(end)
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()


def test_a_fin_does_not_overtake_what_the_kernel_has_taken() -> None:
    """Though a send may be taken before it is sealed and out: close_notify goes behind it, and
    where that was taken the FIN may follow."""
    data = random.Random(1).randbytes(600_000)
    one, two = secured()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 60_000)
    two.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
    two.setblocking(True)
    got, sent, was_full = bytearray(), 0, False
    with one, two, select.epoll() as poller:
        poller.register(one, select.EPOLLOUT)
        while sent < len(data):
            try:
                sent += one.send(data[sent:])
            except BlockingIOError:
                was_full = True
                got += two.recv(20_000)
        while True:
            try:
                say(one, ALERT, CLOSE_NOTIFY)
                break
            except BlockingIOError:
                got += two.recv(20_000)
        one.shutdown(socket.SHUT_WR)
        while len(got) < len(data):
            got += two.recv(20_000)
        assert hear(two) == (ALERT, CLOSE_NOTIFY)
        assert two.recv(100) == b""
    assert was_full
    assert got == data


def test_new_keys_are_taken_or_refused_as_was_found(pair: Pair) -> None:
    """By the end that reads, behind a KeyUpdate."""
    one, two = pair
    say(one, HANDSHAKE, b"\x18\0\0\1\0")
    assert hear(two) == (HANDSHAKE, b"\x18\0\0\1\0")
    info = ktls.crypto_info(TLS_1_3, AES_128, ktls._trial_keys(AES_128, TLS_1_3), 0)
    if ktls.support().rekeys:
        ktls.give(one, TLS_TX, info)
        ktls.give(two, TLS_RX, info)
        one.send(b"new")
        assert two.recv(100) == b"new"
    else:
        with pytest.raises(OSError, match="Device or resource busy"):
            ktls.give(two, TLS_RX, info)
