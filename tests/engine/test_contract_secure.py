"""The contract, on every engine, continued: `secure`, and what a secured link is.

Far ends are `tls_ends.SecureFar`. What takes real certificates and hostile bytes of the real
protocol is in `test_tls.py`; that relays are the same over TLS, in `test_contract_relay.py`.
"""

from dataclasses import replace

import pytest

from engine.rig import MEBIBYTE, Rig, noise
from engine.test_contract_relay import QUICK, close_code, down, up
from engine.tls_ends import (
    SecureFar,
    accepted,
    authority,
    client_settings,
    connected,
    machine_for,
    over,
    pair,
    server_settings,
)
from gateway import frames
from gateway.engine.contract import QUEUE_HIGH, QUEUE_MAX, READ_MAX
from gateway.errors import Fault, Handshake
from gateway.events import (
    Accepted,
    Cause,
    Cleared,
    Clogged,
    Closed,
    Connected,
    Event,
    Finished,
    Link,
    Received,
    RelayEnded,
    Secured,
    Side,
    TimedOut,
    TlsServer,
)


def failed(rig: Rig, link: Link) -> Closed:
    """Wait for the end of a handshake that fails: no event but this one comes."""
    rig.until(lambda: rig.has(link, Closed))
    rig.settle()
    (closed,) = rig.of(link, Closed)
    assert not rig.has(link, Secured)
    assert not rig.has(link, Received)
    assert not rig.has(link, Finished)
    return closed


class TestHandshake:
    """`secure`, `Secured`."""

    @pytest.mark.parametrize("family", ["tcp", "unix"])
    def test_as_a_server(self, rig: Rig, family: str) -> None:
        link, far = accepted(rig, client=client_settings("host.b.example"), family=family)
        assert rig.kinds(link) == [Accepted, Secured]
        (secured,) = rig.of(link, Secured)
        assert secured.server_name == "host.b.example"
        assert secured.protocol == "http/1.1"
        assert secured.version in ("TLSv1.3", "simulated")
        assert not secured.resumed
        assert secured.certificate is None
        rig.engine.read(link)
        far.send(b"hello")
        rig.until(lambda: rig.data(link) == b"hello")
        rig.engine.send(link, b"good day")
        rig.until(lambda: far.received == b"good day")

    @pytest.mark.parametrize("family", ["tcp", "unix"])
    def test_as_a_client(self, rig: Rig, family: str) -> None:
        link, far = connected(rig, family=family)
        assert rig.kinds(link) == [Connected, Secured]
        (secured,) = rig.of(link, Secured)
        assert secured.server_name == "a.example"
        assert secured.protocol == "http/1.1"
        assert secured.certificate is not None
        assert secured.certificate.names == ("DNS:a.example",)
        rig.engine.send(link, b"hello")
        rig.until(lambda: far.received == b"hello")
        far.send(b"good day")
        rig.settle()
        assert rig.data(link) == b""
        rig.engine.read(link)
        rig.until(lambda: rig.data(link) == b"good day")

    def test_a_hello_may_come_byte_by_byte(self, rig: Rig) -> None:
        link, plain = rig.accepted()
        rig.engine.secure(link, server_settings())
        machine = machine_for(rig, client_settings())
        assert not machine.shake()
        for byte in machine.take():
            plain.send(bytes([byte]))
            rig.settle(0.0)
        assert rig.kinds(link) == [Accepted]
        far = SecureFar(plain, machine)
        rig.movers.append(far.move)
        rig.until(lambda: rig.has(link, Secured))

    def test_a_hello_that_never_ends_is_the_callers_to_time(self, rig: Rig) -> None:
        """Nothing comes but the timer, and the caller's `reset` ends it."""
        link, plain = rig.accepted()
        rig.engine.secure(link, server_settings())
        machine = machine_for(rig, client_settings())
        machine.shake()
        plain.send(machine.take()[:-1])
        rig.engine.set_timer(link, "head", rig.engine.now() + 0.02)
        rig.until(lambda: rig.has(link, TimedOut))
        assert rig.kinds(link) == [Accepted, TimedOut]
        rig.engine.reset(link)
        rig.until(lambda: rig.has(link, Closed))
        assert rig.of(link, Closed)[0].fault is None

    def test_what_was_received_before_is_the_handshakes(self, rig: Rig) -> None:
        """The caller looked at the first bytes, as it does where plain HTTP may come as well."""
        link, plain = rig.accepted()
        far = over(rig, plain, client_settings())
        begun = False

        def look(event: Event) -> None:
            nonlocal begun
            if isinstance(event, Received) and not begun:
                begun = True
                rig.engine.hold(link)
                rig.engine.secure(link, server_settings(), event.data)

        rig.on_event = look
        rig.engine.read(link)
        rig.until(lambda: far.is_secured and rig.has(link, Secured))

    def test_what_was_read_and_not_delivered_is_the_handshakes_too(self, rig: Rig) -> None:
        """Two links have bytes in one turn, and the first event secures both."""
        links = [rig.accepted() for _ in range(2)]
        fars = [over(rig, plain, client_settings()) for _, plain in links]
        taken: dict[Link, bytes] = {}

        def begin(event: Event) -> None:
            if isinstance(event, Received) and not taken:
                for link, _ in links:
                    taken[link] = event.data if link == event.link else b""
                    rig.engine.secure(link, server_settings(), taken[link])

        rig.settle()
        for far in fars:
            far.move()
        rig.settle()
        rig.on_event = begin
        for link, _ in links:
            rig.engine.read(link)
        rig.until(lambda: all(rig.has(link, Secured) for link, _ in links))

    def test_what_comes_with_the_last_of_it_is_not_lost(self, rig: Rig) -> None:
        """Nor told before it is to be read."""
        link, plain = rig.accepted()
        rig.engine.secure(link, server_settings())
        far = over(rig, plain, client_settings())
        far.send(noise(1000))
        rig.until(lambda: rig.has(link, Secured))
        rig.settle()
        assert rig.kinds(link) == [Accepted, Secured]
        rig.engine.read(link)
        rig.until(lambda: rig.data(link) == noise(1000))

    def test_read_may_be_said_before_it_is_done(self, rig: Rig) -> None:
        link, plain = rig.accepted()
        rig.engine.read(link)
        rig.engine.secure(link, server_settings())
        far = over(rig, plain, client_settings())
        far.send(noise(1000))
        far.finish()
        rig.until(lambda: rig.has(link, Finished))
        assert rig.kinds(link) == [Accepted, Secured, Received, Finished]
        assert rig.data(link) == noise(1000)

    def test_hold_counts_from_the_end_of_it(self, rig: Rig) -> None:
        link, plain = rig.accepted()
        rig.engine.read(link)
        rig.engine.secure(link, server_settings())
        rig.engine.hold(link)
        far = over(rig, plain, client_settings())
        far.send(b"later")
        rig.until(lambda: rig.has(link, Secured))
        rig.settle()
        assert not rig.has(link, Received)
        rig.engine.read(link)
        rig.until(lambda: rig.data(link) == b"later")

    def test_timers_go_on(self, rig: Rig) -> None:
        link, plain = rig.accepted()
        rig.engine.set_timer(link, "mine", rig.engine.now())
        rig.engine.secure(link, server_settings())
        rig.until(lambda: rig.has(link, TimedOut))
        over(rig, plain, client_settings())
        rig.until(lambda: rig.has(link, Secured))

    @pytest.mark.parametrize("verb", ["close", "reset"])
    def test_it_may_be_given_up(self, rig: Rig, verb: str) -> None:
        link, plain = rig.accepted()
        rig.engine.secure(link, server_settings())
        getattr(rig.engine, verb)(link)
        rig.until(lambda: rig.has(link, Closed))
        assert rig.of(link, Closed)[0].fault is None
        rig.until(lambda: plain.was_reset or plain.finished)
        assert not rig.has(link, Secured)

    def test_of_a_link_that_is_gone_it_does_nothing(self, rig: Rig) -> None:
        link, _ = rig.accepted()
        rig.engine.close(link)
        rig.engine.secure(link, server_settings())
        rig.until(lambda: rig.has(link, Closed))
        rig.engine.secure(link, server_settings())
        rig.settle()
        assert rig.kinds(link) == [Accepted, Closed]


class TestHandshakeFails:
    """`Closed` with a sentence, never an exception."""

    @pytest.mark.parametrize(
        ("said", "sentence"),
        [
            (b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "the client spoke plain HTTP"),
            (b"\x00" * 100, "what the client sent is not TLS"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "what the client sent is not TLS"),
        ],
    )
    def test_bytes_that_are_no_tls(self, rig: Rig, said: bytes, sentence: str) -> None:
        link, plain = rig.accepted()
        rig.engine.secure(link, server_settings())
        plain.send(said)
        closed = failed(rig, link)
        assert (closed.fault, closed.detail) == (Fault.TLS, sentence)
        assert closed.handshake is Handshake.NOT_TLS
        rig.until(lambda: plain.finished or plain.was_reset)

    def test_an_upstream_that_does_not_speak_tls(self, rig: Rig) -> None:
        link, plain = rig.connected()
        rig.engine.secure(link, client_settings())
        plain.send(b"220 mail.example ESMTP\r\n")
        closed = failed(rig, link)
        assert closed.fault is Fault.TLS
        assert closed.detail == "what the upstream sent is not TLS"

    def test_the_far_end_leaves(self, rig: Rig) -> None:
        for far, opens in ((rig.accepted, server_settings()), (rig.connected, client_settings())):
            link, plain = far()
            rig.engine.secure(link, opens)
            plain.finish()
            closed = failed(rig, link)
            assert closed.fault is Fault.TLS
            assert closed.handshake is Handshake.LEFT
            assert "left in the middle of the handshake" in closed.detail

    def test_the_far_end_had_left_before(self, rig: Rig) -> None:
        """The FIN was read and is not delivered yet, or is still in the kernel."""
        link, plain = rig.accepted()
        rig.engine.read(link)
        plain.finish()
        rig.on_event = lambda event: (
            rig.engine.secure(link, server_settings()) if isinstance(event, Secured) else None
        )
        rig.settle_far()
        rig.engine.secure(link, server_settings())
        assert failed(rig, link).handshake is Handshake.LEFT

    def test_the_link_is_lost(self, rig: Rig) -> None:
        link, plain = rig.accepted()
        rig.engine.secure(link, server_settings())
        plain.reset()
        closed = failed(rig, link)
        assert closed.fault is Fault.RESET
        assert closed.handshake is Handshake.LEFT

    def test_a_wrong_name(self, rig: Rig) -> None:
        link, plain = rig.connected()
        rig.engine.secure(link, client_settings("other.example"))
        far = over(rig, plain, server_settings())
        closed = failed(rig, link)
        assert closed.fault is Fault.TLS
        assert closed.handshake is Handshake.UNTRUSTED
        assert closed.detail.startswith("the upstream's certificate is not for other.example")
        assert closed.detail.endswith("; set server_name to a name that it is for")
        rig.until(lambda: far.fault is not None)    # it was told

    def test_a_wrong_name_passes_where_nothing_is_verified(self, rig: Rig) -> None:
        settings = replace(client_settings("other.example"), verify=False)
        link, _ = connected(rig, client=settings)
        assert rig.has(link, Secured)

    def test_no_client_certificate(self, rig: Rig) -> None:
        settings = TlsServer(
            certificates=(pair("a.example"),),
            client_certificates="require",
            client_ca=authority().pem,
        )
        link, plain = rig.accepted()
        rig.engine.secure(link, settings)
        far = over(rig, plain, client_settings())
        closed = failed(rig, link)
        assert closed.fault is Fault.TLS
        assert closed.handshake is Handshake.NO_CERTIFICATE
        assert closed.detail == "the client gave no certificate, and one is required"
        rig.until(lambda: far.fault is not None)

    @pytest.mark.parametrize("mode", ["request", "require"])
    def test_a_client_certificate_is_told(self, rig: Rig, mode: str) -> None:
        settings = TlsServer(
            certificates=(pair("a.example"),), client_certificates=mode, client_ca=authority().pem
        )
        shown = pair("EMAIL:robot@a.example")
        client = replace(client_settings(), chain=shown.chain, key=shown.key)
        link, _ = accepted(rig, settings, client)
        certificate = rig.of(link, Secured)[0].certificate
        assert certificate is not None
        assert certificate.subject
        without, _ = accepted(rig, replace(settings, client_certificates="request"))
        assert rig.of(without, Secured)[0].certificate is None


class TestSecuredLinks:
    """Behind `Secured` a link is a link."""

    def test_much_passes_both_ways(self, rig: Rig) -> None:
        """Records of 16 KiB and more, in any cuts; what is received is never more than READ_MAX."""
        link, far = accepted(rig, small=True)
        data = noise(MEBIBYTE // 2)
        rig.engine.read(link)
        far.send(data)
        rig.until(lambda: len(rig.data(link)) == len(data))
        assert rig.data(link) == data
        assert max(len(event.data) for event in rig.of(link, Received)) <= READ_MAX
        far.stall()
        sent = 0
        while not rig.has(link, Clogged):
            rig.engine.send(link, data[sent : sent + 16_000])
            sent += 16_000
            assert sent < len(data)
            rig.settle(0.003)
        assert rig.engine.stats().queued > QUEUE_HIGH
        assert not far.received[sent:]
        far.resume()
        rig.until(lambda: rig.has(link, Cleared))
        rig.engine.send(link, data[sent:])
        rig.until(lambda: len(far.received) == len(data))
        assert far.received == data
        assert rig.engine.stats().queued == 0

    def test_more_than_the_limit_closes_it(self, rig: Rig) -> None:
        link, far = accepted(rig, small=True)
        far.stall()
        for _ in range(QUEUE_MAX // 16_384 * 2):
            rig.engine.send(link, bytes(16_384))
        rig.until(lambda: rig.has(link, Closed))
        assert rig.of(link, Closed)[0].fault is Fault.OVERFLOW

    def test_each_way_ends_by_itself(self, rig: Rig) -> None:
        """`Finished` is close_notify, and what the other says still arrives."""
        link, far = accepted(rig)
        rig.engine.read(link)
        far.send(b"a question")
        far.finish()
        rig.until(lambda: rig.has(link, Finished))
        assert rig.data(link) == b"a question"
        rig.engine.send(link, b"an answer")
        rig.engine.finish(link)
        rig.until(lambda: far.finished)
        assert far.received == b"an answer"
        assert far.fault is None
        rig.engine.close(link)
        rig.until(lambda: rig.has(link, Closed))
        assert not far.was_reset

    def test_after_finish_it_is_still_read(self, rig: Rig) -> None:
        link, far = accepted(rig)
        rig.engine.finish(link)
        rig.until(lambda: far.finished)
        far.send(noise(100_000))
        rig.settle()
        rig.engine.read(link)
        rig.until(lambda: rig.data(link) == noise(100_000))
        far.finish()
        rig.until(lambda: rig.has(link, Finished))

    @pytest.mark.parametrize("size", [0, 10, 300_000])
    def test_close_says_close_notify_behind_what_is_queued(self, rig: Rig, size: int) -> None:
        link, far = accepted(rig, small=True)
        far.stall()
        if size:
            rig.engine.send(link, noise(size))
        rig.engine.close(link)
        rig.settle()
        far.resume()
        rig.until(lambda: far.finished and rig.has(link, Closed))
        assert far.received == noise(size)
        assert rig.of(link, Closed)[0].fault is None

    def test_finish_says_close_notify_behind_what_is_queued(self, rig: Rig) -> None:
        link, far = accepted(rig, small=True)
        far.stall()
        rig.engine.send(link, noise(300_000))
        rig.engine.finish(link)
        rig.settle()
        far.resume()
        rig.until(lambda: far.finished)
        assert far.received == noise(300_000)

    @pytest.mark.parametrize("family", ["tcp", "unix"])
    def test_reset_says_nothing(self, rig: Rig, family: str) -> None:
        link, far = accepted(rig, family=family)
        rig.engine.reset(link)
        rig.until(lambda: far.was_reset or far.plain.finished)
        rig.settle()
        assert not far.finished

    def test_fin_without_close_notify_is_truncation(self, rig: Rig) -> None:
        """What came before it is delivered."""
        link, far = accepted(rig)
        rig.engine.read(link)
        far.send(b"not all of it")
        far.truncate()
        rig.until(lambda: rig.has(link, Closed))
        assert rig.kinds(link) == [Accepted, Secured, Received, Closed]
        assert rig.data(link) == b"not all of it"
        (closed,) = rig.of(link, Closed)
        assert closed.fault is Fault.TRUNCATED
        assert "close_notify" in closed.detail
        assert closed.handshake is None

    def test_a_record_that_is_cut_is_truncation(self, rig: Rig) -> None:
        link, far = accepted(rig)
        rig.engine.read(link)
        far.machine.seal(b"whole")
        whole = far.machine.take()
        far.machine.seal(noise(1000))
        far.plain.send(whole + far.machine.take()[:-7])
        far.truncate()
        rig.until(lambda: rig.has(link, Closed))
        assert rig.data(link) == b"whole"
        assert rig.of(link, Closed)[0].fault is Fault.TRUNCATED

    def test_bytes_that_are_no_record_end_it(self, rig: Rig) -> None:
        """Behind what came before them; the far end is told by an alert."""
        link, far = accepted(rig)
        rig.engine.read(link)
        far.machine.seal(b"whole")
        far.plain.send(far.machine.take() + b"GET / HTTP/1.1\r\n\r\n" + bytes(100))
        rig.until(lambda: rig.has(link, Closed))
        assert rig.data(link) == b"whole"
        (closed,) = rig.of(link, Closed)
        assert closed.fault is Fault.TLS
        assert closed.detail
        rig.until(lambda: far.fault is not None)

    def test_a_loss_is_told_behind_what_came(self, rig: Rig) -> None:
        link, far = accepted(rig)
        far.send(b"last words")
        rig.settle()
        far.reset()
        rig.settle()
        rig.engine.read(link)
        rig.until(lambda: rig.has(link, Closed))
        assert rig.of(link, Closed)[0].fault is Fault.RESET

    def test_a_reset_is_one_also_where_bytes_waited_for_that_side(self, rig: Rig) -> None:
        """The kernel tells of it once, to whoever asks first: a send as well as a read."""
        link, far = accepted(rig, small=True)
        rig.engine.read(link)
        far.stall()
        rig.engine.send(link, noise(300_000))
        rig.settle()
        far.reset()
        rig.until(lambda: rig.has(link, Closed))
        assert rig.of(link, Closed)[0].fault is Fault.RESET

    def test_stop_leaves_nothing(self, rig: Rig) -> None:
        """Of a handshake, of a link that waits for its close_notify, of one that is open."""
        link, _ = rig.accepted()
        rig.engine.secure(link, server_settings())
        accepted(rig)
        closing, far = accepted(rig, small=True)
        far.stall()
        rig.engine.send(closing, noise(300_000))
        rig.engine.close(closing)
        rig.settle(0.0)
        rig.engine.stop()
        assert rig.engine.stats().links == 0


class TestTruncationOfRelays:
    """A relay's stream that may be cut never looks whole to the other side."""

    @pytest.mark.parametrize("side", list(Side))
    def test_between_frames_it_is_a_loss_to_the_other(self, rig: Rig, side: Side) -> None:
        client, browser = accepted(rig)
        upstream, server = connected(rig)
        rig.engine.relay(client, upstream, QUICK)
        ends = (browser, server)
        ends[side].send((up, down)[side](b"as far as this"))
        ends[side].truncate()
        other = ends[1 - side]
        code = close_code((1001, 1014)[side.other is Side.CLIENT])
        if side is Side.UPSTREAM:
            rig.until(lambda: code in other.received)
        rig.until(lambda: len(other.received) > 20)
        other.finish()
        rig.until(lambda: rig.has(client, RelayEnded))
        (ended,) = rig.of(client, RelayEnded)
        assert (ended.cause, ended.side) == (Cause.TRUNCATED, side)
        faults = [rig.of(link, Closed)[0].fault for link in (client, upstream)]
        assert faults[side] is Fault.TRUNCATED
        assert faults[1 - side] is None

    def test_behind_both_closes_it_harms_nothing(self, rig: Rig) -> None:
        client, browser = accepted(rig)
        upstream, server = connected(rig)
        rig.engine.relay(client, upstream, QUICK)
        browser.send(up(close_code(1000), frames.CLOSE))
        rig.until(lambda: server.received)
        server.send(down(close_code(1000), frames.CLOSE))
        server.truncate()
        rig.until(lambda: browser.received)
        browser.truncate()
        rig.until(lambda: rig.has(client, RelayEnded))
        (ended,) = rig.of(client, RelayEnded)
        assert ended.cause is Cause.CLOSED
        assert [rig.of(link, Closed)[0].fault for link in (client, upstream)] == [None, None]

    def test_what_waits_opened_when_a_relay_begins_is_relayed(self, rig: Rig) -> None:
        """Frames that came with the last bytes of the handshake, of a link that was never read."""
        client, plain = rig.accepted()
        rig.engine.secure(client, server_settings())
        browser = over(rig, plain, client_settings())
        browser.send(up(b"early"))
        upstream, server = connected(rig)
        rig.until(lambda: rig.has(client, Secured))
        rig.settle()
        rig.engine.relay(client, upstream, QUICK)
        rig.until(lambda: server.received == up(b"early"))

    def test_one_side_may_be_plain(self, rig: Rig) -> None:
        client, browser = accepted(rig)
        upstream, server = rig.connected()
        rig.engine.relay(client, upstream, QUICK)
        browser.send(up(noise(200_000)))
        server.send(down(noise(200_000)))
        rig.until(lambda: server.received == up(noise(200_000)))
        rig.until(lambda: browser.received == down(noise(200_000)))
        counts = rig.engine.inspect(client)
        assert counts is not None
        assert [leg.payload for leg in counts] == [200_000, 200_000]
