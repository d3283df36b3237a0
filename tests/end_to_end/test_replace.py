"""Another program in the place of the running one: nobody waits in vain, nobody is cut."""

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest

from end_to_end.kit import Gateway, Starter, head, open_ws, route
from end_to_end.reloads import successor, write
from end_to_end.wire import PATIENCE, TEXT, Upstream, close_frame, connect, frame, plain

TABLE = head('drain = "20s"') + route("page", "builtin:page", path="/")


def ask(gateway: Gateway, listener: int = 0) -> None:
    with gateway.connect(listener) as client:
        client.send(plain("/"))
        assert client.read_answer()[0].status == 200


def test_a_new_program_goes_on_with_the_sockets(start: Starter, tmp_path: Path) -> None:
    """On the port that the old one was given, and at the same file; the old one ends with 0."""
    path = tmp_path / "g.sock"
    gateway = start(TABLE + f'[[listener]]\naddress = "unix:{path}"\n')
    with successor(gateway) as pid:
        assert gateway.process.wait(PATIENCE) == 0
        assert pid != gateway.process.pid
        ask(gateway)
        ask(gateway, 1)
        assert path.exists(), "the old one leaves it to the new one"
    assert not path.exists(), "the new one removes it"


def test_sessions_of_the_old_one_are_told_and_end_well(
    start: Starter, upstream: Upstream
) -> None:
    gateway = start(head('drain = "20s"') + route("ws", upstream.url("ws")))
    client, service = open_ws(gateway, upstream)
    with client, service, successor(gateway):
        assert client.read_close().code == 1001
        assert service.read_close().code == 1001
        client.send(close_frame(1001))
        service.send(close_frame(1001, masked=False))
        client.finish()
        client.expect_fin()
        assert gateway.process.wait(PATIENCE) == 0
        again, behind = open_ws(gateway, upstream)
        with again, behind:
            again.send(frame(TEXT, b"to the new one"))
            assert behind.read_frame().payload == b"to the new one"


def test_what_the_old_one_still_has_is_told_by_the_new_one(
    start: Starter, upstream: Upstream
) -> None:
    """Until it has ended."""
    gateway = start(head('drain = "20s"') + route("ws", upstream.url("ws")))
    client, service = open_ws(gateway, upstream)
    with client, service, successor(gateway) as pid:
        assert client.read_close().code == 1001
        status = gateway.ask("status")
        assert status["pid"] == pid
        assert status["predecessor"] == {"pid": gateway.process.pid, "sessions": 1}
        assert f"pid {gateway.process.pid}, which drains: 1 session" in gateway.command(
            "status"
        ).stdout
        client.send(close_frame(1001))
        service.send(close_frame(1001, masked=False))
        client.finish()
        client.expect_fin()
        assert gateway.process.wait(PATIENCE) == 0
        assert gateway.ask("status")["predecessor"] is None


def test_the_first_sigterm_of_a_replaced_program_is_patient(
    start: Starter, upstream: Upstream
) -> None:
    """An init sends it to all processes of a service; whoever drains goes on draining."""
    gateway = start(head('drain = "20s"') + route("ws", upstream.url("ws")))
    client, service = open_ws(gateway, upstream)
    with client, service, successor(gateway):
        assert client.read_close().code == 1001
        gateway.signal(signal.SIGTERM)
        assert gateway.err.wait(lambda: "SIGTERM: it drains already" in gateway.messages, PATIENCE)
        assert service.read_close().code == 1001
        client.send(close_frame(1001))
        service.send(close_frame(1001, masked=False))
        client.finish()
        client.expect_fin()
        assert gateway.process.wait(PATIENCE) == 0


def test_a_command_that_takes_no_answer_does_not_keep_the_old_one(start: Starter) -> None:
    """Its connection is cut."""
    gateway = start(TABLE)
    with gateway.unread_command(), successor(gateway):
        assert gateway.process.wait(PATIENCE) == 0


def test_a_new_program_that_fails_changes_nothing(start: Starter, tmp_path: Path) -> None:
    """Its table is broken by now; the old one says so and serves on."""
    path = tmp_path / "g.sock"
    gateway = start(TABLE + f'[[listener]]\naddress = "unix:{path}"\n')
    table = next(tmp_path.glob("*/routes.toml"))
    right = table.read_text()
    table.write_text(right + "nonsense = 1\n")
    gateway.signal(signal.SIGUSR2)

    def refused() -> bool:
        return "the program is not replaced, and serves on" in gateway.messages

    assert gateway.err.wait(refused, PATIENCE), gateway.messages
    assert "exit code 1" in gateway.messages
    assert "nonsense" in gateway.messages
    ask(gateway)
    ask(gateway, 1)
    table.write_text(right)
    with successor(gateway):
        assert gateway.process.wait(PATIENCE) == 0
        ask(gateway)


def test_an_edit_in_the_same_moment(start: Starter, engine: str) -> None:
    """The new program reads the table, and binds what comes with it: the old one keeps still."""
    gateway = start(TABLE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    more = TABLE + f'[[listener]]\naddress = "127.0.0.1:{port}"\n'
    write(gateway, more, engine)
    with successor(gateway):
        assert gateway.process.wait(PATIENCE) == 0
        ask(gateway)
        with connect(("127.0.0.1", port)) as client:
            client.send(plain("/"))
            assert client.read_answer()[0].status == 200
    assert "the table is not reloaded" not in gateway.messages


@pytest.mark.parametrize(("now", "then"), [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")])
def test_the_new_program_listens_wider_or_narrower(
    start: Starter, engine: str, now: str, then: str
) -> None:
    """On the port of a socket that is handed over, and that its table does not name any more."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    gateway = start(TABLE.replace("127.0.0.1:0", f"{now}:{port}"))
    gateway.signal(signal.SIGUSR2)               # and only then is the table another one
    write(gateway, TABLE.replace("127.0.0.1:0", f"{then}:{port}"), engine)
    with successor(gateway, signalled=True):
        assert gateway.process.wait(PATIENCE) == 0
        with connect(("127.0.0.1", port)) as client:
            client.send(plain("/"))
            assert client.read_answer()[0].status == 200
        serving = [line for line in gateway.err.lines if '"serving"' in line]
        assert f'"listening":"{then}:{port}"' in serving[-1]


def test_who_waits_where_the_new_program_does_not_listen_is_served(
    start: Starter, engine: str
) -> None:
    """By the old one, which alone has that socket still."""
    gateway = start(TABLE + '[[listener]]\naddress = "unix:goes.sock"\n')
    (worker,) = gateway.workers
    os.kill(worker, signal.SIGSTOP)
    try:
        with contextlib.ExitStack() as waiting:
            clients = [waiting.enter_context(gateway.connect(1)) for _ in range(100)]
            for one in clients:
                one.send(plain("/"))
            write(gateway, TABLE, engine)
            with successor(gateway):
                os.kill(worker, signal.SIGCONT)
                for one in clients:          # late ones are told that it is going away
                    assert one.read_answer()[0].status in (200, 503)
                assert gateway.process.wait(PATIENCE) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)


def test_sigterm_while_it_is_replaced_ends_both(start: Starter) -> None:
    gateway = start(TABLE)
    gateway.signal(signal.SIGUSR2)

    def begun() -> bool:
        return "a new program is started" in gateway.messages

    assert gateway.err.wait(begun, PATIENCE), gateway.messages
    gateway.signal(signal.SIGTERM)
    assert gateway.process.wait(PATIENCE) == 0
    assert gateway.err.wait(lambda: gateway.err.ended, PATIENCE), "the new one is still there"
    with pytest.raises(ConnectionRefusedError):
        gateway.connect()
