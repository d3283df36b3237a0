"""Conversations with TLS in them: the client's handshake, the upstream's, and what follows."""

from dataclasses import replace

import pytest

from gateway.errors import Blame, Fault, Handshake
from gateway.events import (
    Cause,
    ClearTimer,
    Close,
    Connect,
    PeerCertificate,
    Read,
    Relay,
    Reset,
    Secure,
    Send,
    SetTimer,
)
from gateway.protocol.desk import rules_of
from gateway.protocol.life import State
from gateway.routing import RouteTable
from gateway.table import Listener, Route
from protocol.playbook import (
    ACCEPT,
    LISTENER,
    OUTWARD,
    SECURED,
    C,
    Play,
    Stage,
    U,
    accepted,
    asked,
    endpoint,
    head,
    hole,
    make_desk,
    refusal,
    request,
    upgrade,
)

VERSION = "TLSv1.3"
CERTIFICATE = PeerCertificate(
    subject="CN=Zoë\\, of A,O=x", names=("DNS:zoe.test", 'URI:x:"%\n'), der=b"\x30\x01",
)
UNREACHABLE = refusal(
    b"502 Bad Gateway", "The upstream could not be reached, or gave no usable answer."
)
GOING = refusal(b"503 Service Unavailable", "The gateway is going away.", b"Retry-After: 1")
AT_HTTPS = "This service is at https."


def asked_by_tls(*more: bytes) -> bytes:
    """Our handshake for a client with TLS; `more` is what is told behind that."""
    told = asked().replace(b"Proto: http\r\n", b"Proto: https\r\n")
    told = told.replace(b"proto=http\r\n\r\n", b"proto=https\r\n")
    return told + b"".join(line + b"\r\n" for line in (*more, b""))


def secured(play: Play, server_name: str = "a.test") -> Play:
    """The client's handshake is done."""
    play.secured(C, server_name=server_name, version=VERSION).says_nothing()
    assert play.state is State.HEAD
    return play


# --- The client's handshake -----------------------------------------------------------------------


def test_a_head_behind_the_handshake(begin: Stage) -> None:
    """All is as without TLS, and the upstream is told of it."""
    play = secured(begin(listener=SECURED))
    play.received(C, upgrade()).says(
        ClearTimer("head"), Connect(endpoint(1)), SetTimer("connect", play.now + 2.0)
    )
    play.connected().says(
        ClearTimer("connect"), Send(U, asked_by_tls()), Read(U),
        SetTimer("answer", play.now + 15.0),
    )
    play.received(U, accepted()).says(
        ClearTimer("answer"), Send(C, accepted(accept=ACCEPT)), hole()
    )
    assert play.session.secured is None, "an idle WebSocket keeps little"
    play.relay_ended(Cause.DRAIN).says(play.record(
        tls=VERSION, sni="a.test", method="GET", host="a.test", path="/chat", route="chat",
        endpoint="10.0.0.1:9000", phase="relay", status=101, cause="drain", blame=Blame.GATEWAY,
        phases=hole(),
    ))
    play.ends()


def test_each_record_of_a_connection_says_the_tls(begin: Stage) -> None:
    """The second request's, too."""
    play = secured(begin(listener=SECURED), "")
    for _ in range(2):
        play.received(C, request()).looked_at = True
    assert [one.tls for one in play.records] == [VERSION, VERSION]
    play.finished(C).says(Close(C))
    play.ends()


@pytest.mark.parametrize(("reason", "detail"), [
    (Handshake.NOT_TLS, "The client speaks plain HTTP here."), (None, ""),
])
def test_a_handshake_that_fails(begin: Stage, reason: Handshake | None, detail: str) -> None:
    """Written down and counted, and that is all."""
    play = begin(listener=SECURED)
    play.wait(0.25)
    fault = Fault.TLS if reason else Fault.RESET
    play.lost(C, fault, detail, reason).says(play.record(
        phase="secure", blame=Blame.CLIENT, detail=detail or "the client was lost: reset",
        handshake=reason, phases=(("secure", 0.25),),
    ))
    play.ends()


def test_a_hello_that_never_ends(begin: Stage) -> None:
    """head_timeout is for the handshake too."""
    play = begin(listener=SECURED)
    play.timed_out("head").says(
        play.record(
            phase="secure", blame=Blame.CLIENT, handshake=Handshake.TIMED_OUT,
            detail="head_timeout inside the TLS handshake", phases=(("secure", 10.0),),
        ),
        Reset(C),
    )
    play.ends()


def test_a_drain_leaves_a_handshake_a_moment(begin: Stage) -> None:
    """It is answered if it comes to ask within that."""
    play = begin(listener=SECURED)
    play.drains().says(SetTimer("idle", play.now + 1.0))
    play.wait(0.5)
    play.secured(C, version=VERSION).says(SetTimer("idle", play.now + 1.0))
    play.received(C, upgrade()).says(
        ClearTimer("idle"), ClearTimer("head"), Send(C, GOING),
        play.record(
            tls=VERSION, method="GET", host="a.test", path="/chat", route="chat", phase="head",
            status=503, blame=Blame.GATEWAY, detail="The gateway is going away.",
            phases=(("secure", 0.5), ("head", 0.0)),
        ),
        *play.last_word(),
    )
    play.leaves()


def test_a_drain_does_not_wait_for_a_slow_handshake(begin: Stage) -> None:
    """Nobody would be answered."""
    play = begin(listener=SECURED)
    play.drains().says(SetTimer("idle", play.now + 1.0))
    play.timed_out("idle").says(
        play.record(phase="secure", blame=Blame.GATEWAY, detail="drain",
                    phases=(("secure", 1.0),)),
        Reset(C),
    )
    play.ends()


def test_a_kill_in_the_handshake(begin: Stage) -> None:
    """Nothing is lost: it does not count as cut."""
    play = begin(listener=SECURED)
    play.is_killed().says(
        play.record(phase="secure", blame=Blame.GATEWAY, detail="cut: the gateway ends",
                    phases=(("secure", 0.0),)),
        Reset(C),
    )
    play.ends()


# --- Which host, which route ----------------------------------------------------------------------


@pytest.mark.parametrize(("sni", "host", "status"), [
    ("a.test", b"a.test:8443", 200), ("a.test", b"A.Test.", 200), ("x.a.test", b"a.test", 200),
    ("b.test", b"b.test", 200), ("", b"b.test", 200),
    ("a.test", b"strangers.test", 200),          # the certificate of strangers is the first, too
    ("a.test", b"b.test", 421), ("b.test", b"x.a.test", 421), ("b.test", b"strangers.test", 421),
])
def test_a_host_of_another_certificate(
    begin: Stage, sni: str, host: bytes, status: int
) -> None:
    """421, on a connection that stays; 200 where the certificate may speak for the host."""
    play = secured(begin(listener=SECURED), sni)
    said = play.received(C, request(host=host))
    said.looked_at = True
    record = play.records[-1]
    assert (record.status, record.sni) == (status, sni)
    assert play.state is State.HEAD
    play.finished(C).says(Close(C))
    play.ends()


def test_http_1_0_without_a_host_is_no_other(begin: Stage) -> None:
    """It names none."""
    play = secured(begin(listener=SECURED), "b.test")
    play.received(C, head(b"GET / HTTP/1.0")).looked_at = True
    assert play.records[-1].status == 200
    play.leaves()


@pytest.mark.parametrize(("sni", "route"), [("a.test", "named"), ("x.a.test", "page"),
                                            ("", "page")])
def test_a_route_by_sni(begin: Stage, sni: str, route: str) -> None:
    """A route may ask for the name in the hello."""
    desk = make_desk({}, 1)
    desk.routes = RouteTable((
        *desk.table.routes, Route(name="named", path="/", sni=("a.test",), upstream="page"),
    ))
    play = secured(begin(listener=SECURED, desk=desk), sni)
    play.received(C, request()).looked_at = True
    assert play.records[-1].route == route
    play.finished(C).says(Close(C))
    play.ends()


# --- Who the client is ----------------------------------------------------------------------------


def test_a_client_certificate_is_told(begin: Stage) -> None:
    """RFC 9440's field, the subject and the names; what the client says of that itself is not."""
    play = begin(listener=SECURED)
    play.secured(C, version=VERSION, certificate=CERTIFICATE).says_nothing()
    play.received(C, upgrade(b"Client-Cert: :AAAA:", b"x_client_cert_subject: CN=root")).says(
        ClearTimer("head"), Connect(endpoint(1)), SetTimer("connect", play.now + 2.0)
    )
    play.connected().says(
        ClearTimer("connect"),
        Send(U, asked_by_tls(
            b"Client-Cert: :MAE=:", b"X-Client-Cert-Subject: CN=Zo\\C3\\AB\\, of A,O=x",
            b'X-Client-Cert-Names: "DNS:zoe.test", "URI:x:%22%25%0A"',
        )),
        Read(U), SetTimer("answer", play.now + 15.0),
    )
    play.lost(C).looked_at = True
    play.ends()


# --- Redirect -------------------------------------------------------------------------------------


def redirecting(port: int = 443) -> Listener:
    """A listener that does nothing else."""
    return replace(LISTENER, redirect=port)


@pytest.mark.parametrize(("port", "data", "location"), [
    (443, request(host=b"a.test:80"), b"https://a.test/"),
    (8443, request(host=b"[::1]:80", start=b"POST /x?y HTTP/1.1"), b"https://[::1]:8443/x?y"),
    (443, request(start=b"GET //evil.test/?# HTTP/1.1"), None),
    (443, request(start=b"GET //evil.test/? HTTP/1.1"), b"https://a.test//evil.test/?"),
    (443, request(start=b"GET http://b.test/%0d HTTP/1.1"), b"https://b.test/%0d"),
])
def test_a_redirect(begin: Stage, port: int, data: bytes, location: bytes | None) -> None:
    """Each request is sent to the same place by https, and the connection stays."""
    play = begin(listener=redirecting(port))
    said = play.received(C, data)
    said.looked_at = True
    if location is None:
        assert play.records[-1].status == 400
        play.leaves()
        return
    sent = next(one.data for one in said.commands if isinstance(one, Send))
    assert sent.startswith(b"HTTP/1.1 308 ")
    assert b"\r\nLocation: " + location + b"\r\n" in sent
    assert (play.records[-1].status, play.records[-1].detail) == (308, "redirected to https")
    assert play.state is State.HEAD
    play.finished(C).says(Close(C))
    play.ends()


def test_a_redirect_of_an_upgrade(begin: Stage) -> None:
    """The same; clients of WebSockets that follow redirects know https for wss."""
    play = begin(listener=redirecting())
    play.received(C, upgrade()).says(
        ClearTimer("head"),
        Send(C, refusal(b"308 Permanent Redirect", AT_HTTPS, b"Location: https://a.test/chat")),
        play.record(method="GET", host="a.test", path="/chat", phase="head", status=308,
                    detail="redirected to https", phases=(("head", 0.0),)),
        *play.last_word(),
    )
    play.leaves()


def test_a_redirect_without_a_host(begin: Stage) -> None:
    """There is nowhere to send it."""
    play = begin(listener=redirecting())
    play.received(C, head(b"GET / HTTP/1.0")).looked_at = True
    assert play.records[-1].status == 400
    play.leaves()


# --- The upstream's handshake ---------------------------------------------------------------------


def test_an_upstream_with_tls(begin: Stage) -> None:
    """Secured before it is asked, within connect_timeout."""
    play = begin(outward=OUTWARD)
    play.received(C, upgrade()).says(
        ClearTimer("head"), Connect(endpoint(1)), SetTimer("connect", play.now + 2.0)
    )
    play.wait(0.5)
    play.connected().says(Secure(U, OUTWARD))
    play.wait(0.5)
    play.secured(U).says(
        ClearTimer("connect"), Send(U, asked()), Read(U), SetTimer("answer", play.now + 15.0),
    )
    play.received(U, accepted()).says(
        ClearTimer("answer"), Send(C, accepted(accept=ACCEPT)), hole()
    )
    play.relay_ended(Cause.CLOSED, C).looked_at = True
    assert dict(play.records[-1].phases)["connect"] == 1.0
    play.ends()


def test_a_raw_upstream_with_tls(begin: Stage) -> None:
    """Nothing to ask: the relay begins behind the handshake."""
    play = begin(outward=OUTWARD)
    play.received(C, upgrade(path=b"/raw")).says(
        ClearTimer("head"), Connect(endpoint(1)), SetTimer("connect", play.now + 2.0)
    )
    play.connected().says(Secure(U, OUTWARD))
    route = play.desk.table.routes[2]
    play.secured(U).says(
        ClearTimer("connect"), Send(C, accepted(accept=ACCEPT)),
        Relay(rules_of(route, raw=True, deflate=False)),
    )
    play.relay_ended(Cause.CLOSED, C).looked_at = True
    play.ends()


def test_an_upstream_whose_certificate_does_not_hold(begin: Stage) -> None:
    """The next endpoint is tried; the client is told nothing of it, the record all."""
    play = begin(outward=OUTWARD, endpoints=2)
    play.received(C, upgrade()).says(
        ClearTimer("head"), Connect(endpoint(1)), SetTimer("connect", play.now + 2.0)
    )
    play.connected().says(Secure(U, OUTWARD))
    play.lost(U, Fault.TLS, "Its certificate is for b.test.", Handshake.UNTRUSTED).says(
        ClearTimer("connect"), Connect(endpoint(2)), SetTimer("connect", play.now + 2.0)
    )
    play.connected().says(Secure(U, OUTWARD))
    play.lost(U, Fault.TLS, "Its certificate has expired.", Handshake.UNTRUSTED).says(
        ClearTimer("connect"), Send(C, UNREACHABLE),
        play.record(
            method="GET", host="a.test", path="/chat", route="chat", endpoint="10.0.0.2:9000",
            phase="connect", status=502, blame=Blame.UPSTREAM,
            detail="tls: Its certificate has expired.",
            phases=(("head", 0.0), ("connect", 0.0)),
        ),
        *play.last_word(),
    )
    play.leaves()


def test_an_upstream_that_refuses_us_behind_the_handshake(begin: Stage) -> None:
    """As TLS 1.3 has it of a client's certificate: the record has the sentence all the same."""
    play = begin(outward=OUTWARD)
    play.received(C, upgrade()).looked_at = True
    play.connected().says(Secure(U, OUTWARD))
    play.secured(U).looked_at = True
    play.lost(U, Fault.TLS, "it wants a certificate").looked_at = True
    record = play.records[-1]
    assert record.status == 502
    assert record.detail == "the upstream was lost before its answer: it wants a certificate"
    play.leaves()


def test_an_upstream_that_never_ends_its_handshake(begin: Stage) -> None:
    """connect_timeout is for it, too."""
    play = begin(outward=OUTWARD)
    play.received(C, upgrade()).looked_at = True
    play.connected().says(Secure(U, OUTWARD))
    play.timed_out("connect").looked_at = True
    assert (play.records[-1].status, play.records[-1].detail) == (504, "connect: connect_timeout")
    play.leaves()
