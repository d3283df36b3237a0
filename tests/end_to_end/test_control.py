"""Asking a running gateway, over its control socket and its admin address: what it says agrees with
what clients saw, and what it is told it does."""

import contextlib
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from end_to_end.kit import Gateway, Starter, head, launch, on_engine, route, run
from end_to_end.reloads import successor
from end_to_end.wire import PATIENCE, upgrade, wait_for

Client = Callable[..., ClientConnection]
ECHO = route("echo", "builtin:echo", 'max_message = "100KiB"')


@pytest.fixture
def client() -> Iterator[Client]:
    """Opens a session that echoes; it is closed with the test."""
    with contextlib.ExitStack() as stack:

        def opened(gateway: Gateway, path: str = "/echo") -> ClientConnection:
            one = stack.enter_context(
                connect(gateway.url(path), proxy=None, compression=None)
            )
            one.send("hello")
            assert one.recv(timeout=PATIENCE) == "hello"
            return one

        yield opened


def closed_with(one: ClientConnection) -> tuple[int, str]:
    """The code and the reason of the Close that comes now."""
    with pytest.raises(ConnectionClosed) as closed:
        one.recv(timeout=PATIENCE)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


# --- The control socket -----------------------------------------------------------------------


def test_sessions_are_listed_over_all_workers(start: Starter, client: Client) -> None:
    """The oldest first, by route, at most so many; a session's id is that of its record."""
    gateway = start(head("workers = 2") + ECHO + route("other", "builtin:echo"))
    opened = [client(gateway) for _ in range(5)] + [client(gateway, "/other")]
    answer = gateway.ask("sessions")
    assert answer["total"] == 6
    assert {row["route"] for row in answer["sessions"]} == {"echo", "other"}
    ages = [row["age"] for row in answer["sessions"]]
    assert ages == sorted(ages, reverse=True)
    assert {row["phase"] for row in answer["sessions"]} == {"relay"}
    few = gateway.ask("sessions", "--route", "echo", "--limit", "2")
    assert (few["total"], len(few["sessions"])) == (5, 2)
    (other,) = gateway.ask("sessions", "--route", "other")["sessions"]
    opened[-1].close()
    assert gateway.record(route="other")["session"] == other["session"]
    assert "no route has the name nothing" in gateway.command(
        "sessions", "--route", "nothing"
    ).stderr
    assert "5 of 5 sessions" in gateway.command("sessions").stdout


def test_one_session_is_closed(start: Starter, client: Client) -> None:
    """With the code and the reason of the order; nobody else is touched."""
    gateway = start(head("workers = 2") + ECHO)
    one, other = client(gateway), client(gateway)
    row = gateway.ask("sessions")["sessions"][0]
    done = gateway.command("close", row["session"], "--code", "4001", "--reason", "signed out")
    assert (done.returncode, done.stderr) == (0, "")
    assert closed_with(one) == (4001, "signed out")
    record = gateway.record(session=row["session"])
    assert (record["cause"], record["from_client"]["close_sent"]) == ("dismissed", 4001)
    done = gateway.command("close", row["session"])
    assert (done.returncode, done.stderr) == (1, f"no session has the id {row['session']}\n")
    other.send("still here")
    assert other.recv(timeout=PATIENCE) == "still here"


def test_status(start: Starter, client: Client) -> None:
    """Sessions by worker and route, and what a person reads."""
    gateway = start(head("workers = 2") + ECHO)
    opened = [client(gateway) for _ in range(3)]
    opened.pop().close()
    wait_for(lambda: gateway.ask("status")["routes"][0]["sessions"] == 2)
    status = gateway.ask("status")
    assert status["routes"] == [{"name": "echo", "sessions": 2, "total": 3}]
    assert sum(one["sessions"] for one in status["workers"]) == 2
    assert {one["state"] for one in status["workers"]} == {"serving"}
    assert (status["pid"], status["ready"]) == (gateway.process.pid, True)
    assert status["listening"] == [f"127.0.0.1:{gateway.port}"]
    assert "2 sessions" in gateway.command("status").stdout


def test_a_drain_is_ordered_and_waited_for(start: Starter, client: Client) -> None:
    """As by SIGTERM; the command ends with the gateway, and with its exit code."""
    gateway = start(head() + ECHO)
    one = client(gateway)
    assert gateway.ask("drain") == {"is": "draining", "sessions": 1}
    assert closed_with(one)[0] == 1001
    assert gateway.command("drain", "--wait").returncode in (0, 6)   # it may have ended already
    assert gateway.wait() == 0


def test_a_drain_that_cuts_is_exit_code_4(start: Starter) -> None:
    """For the command that waits, too."""
    gateway = start(head('drain = "1s"') + route("echo", "builtin:echo", 'close_timeout = "60s"'))
    with gateway.connect() as silent:
        silent.send(upgrade("/echo"))
        assert silent.read_head().status == 101
        done = gateway.command("drain", "--wait")
        assert (done.returncode, done.stdout) == (4, "ended, 1 session cut\n")
        assert gateway.wait() == 4


def test_a_second_gateway_does_without_the_usual_place(start: Starter, engine: str) -> None:
    """It serves, and says what it lacks; a place that is named must be free."""
    gateway = start(head() + ECHO)
    with launch(head() + ECHO, gateway.folder, engine=engine) as second:
        second.said("no control socket")
        assert "another process listens there" in second.messages
    named = gateway.folder / "named.toml"
    named.write_text(on_engine(head('control = "control.sock"') + ECHO, engine))
    done = run("--routes", str(named))
    assert done.returncode == 3
    assert "another process listens there" in done.stderr
    assert gateway.ask("status")["ready"]


# --- The admin address ------------------------------------------------------------------------


def admin_of(gateway: Gateway) -> str:
    """The URL of its admin address, as the start line has it."""
    line = next(line for line in gateway.err.lines if '"message":"serving"' in line)
    return f"http://{json.loads(line)['admin']}"


def get(url: str) -> tuple[int, str]:
    """Status and text of an answer."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(gateway: Gateway) -> dict[str, float]:
    """Every metric by its name and labels."""
    _, text = get(f"{admin_of(gateway)}/metrics")
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())):
            sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
    }


ADMIN = 'admin = "127.0.0.1:0"'


def test_ready_until_it_drains(start: Starter) -> None:
    """Not ready at once, though it still accepts for `drain_delay`; alive all the time."""
    gateway = start(head(ADMIN, 'drain_delay = "60s"') + ECHO)
    admin = admin_of(gateway)
    assert get(f"{admin}/readyz") == (200, "ready\n")
    gateway.ask("drain")
    assert get(f"{admin}/readyz") == (503, "not ready\n")
    assert get(f"{admin}/livez") == (200, "alive\n")
    with connect(gateway.url("/echo"), proxy=None):
        pass


def test_not_ready_while_no_worker_serves(start: Starter) -> None:
    """Workers that die young are replaced later and later: nobody accepts meanwhile."""
    gateway = start(head(ADMIN) + ECHO)
    admin = admin_of(gateway)

    def gone() -> bool:
        for pid in gateway.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return get(f"{admin}/readyz") == (503, "not ready\n")

    wait_for(gone, message="ready without a worker")
    assert get(f"{admin}/livez") == (200, "alive\n")
    wait_for(lambda: get(f"{admin}/readyz")[0] == 200, message="not ready again")
    with connect(gateway.url("/echo"), proxy=None):
        pass


def test_a_new_program_goes_on_with_the_admin_address(start: Starter) -> None:
    """At the same port: a scrape has it there, and is told what the old one still has."""
    gateway = start(head(ADMIN, 'drain = "20s"') + ECHO)
    admin = admin_of(gateway)
    with connect(gateway.url("/echo"), proxy=None), successor(gateway):
        assert gateway.process.wait(PATIENCE) == 0
        assert get(f"{admin}/readyz") == (200, "ready\n")
        assert samples(gateway)["gateway_predecessor_sessions"] == 0


def test_a_command_that_takes_no_answer_does_not_keep_it_from_ending(start: Starter) -> None:
    """Its connection is cut."""
    gateway = start(head() + ECHO)
    with gateway.unread_command():
        gateway.signal(signal.SIGTERM)
        assert gateway.wait() == 0


def test_metrics_agree_with_what_clients_saw(start: Starter, client: Client) -> None:
    """Sessions by how they ended, answers by status, bytes, reloads; over two workers."""
    gateway = start(head(ADMIN, "workers = 2") + ECHO)
    for size in (1000, 20_000, 50_000):
        one = client(gateway)
        one.send("x" * size)
        assert len(one.recv(timeout=PATIENCE)) == size
        one.close()
    too_big = client(gateway)
    too_big.send("x" * 200_000)
    assert closed_with(too_big)[0] == 1009
    dismissed, stays = client(gateway), client(gateway)
    gateway.command("close", gateway.ask("sessions")["sessions"][0]["session"])
    assert closed_with(dismissed)[0] == 1000
    with pytest.raises(InvalidStatus):
        client(gateway, "/nothing")
    gateway.command("reload")
    (gateway.folder / "routes.toml").write_text("broken =")
    assert gateway.command("reload").returncode == 1
    for count, cause in ((3, "closed"), (1, "dismissed"), (1, "too big")):
        wait_for(lambda n=count, c=cause: len(  # type: ignore[misc]
            [one for one in gateway.records if one["cause"] == c]) == n)
    wait_for(lambda: samples(gateway)["gateway_connections_open"] == 1)
    found = samples(gateway)
    assert {key: found[key] for key in found if key.startswith("gateway_sessions")} == {
        "gateway_sessions_open route=echo": 1,
        "gateway_sessions_total route=echo": 6,
        "gateway_sessions_ended_total cause=closed route=echo": 3,
        "gateway_sessions_ended_total cause=dismissed route=echo": 1,
        "gateway_sessions_ended_total cause=too big route=echo": 1,
        "gateway_sessions_crashed_total": 0, "gateway_sessions_cut_total": 0,
    }
    assert found["gateway_handshakes_total status=101"] == 6
    assert found["gateway_handshakes_total status=404"] == 1
    assert found["gateway_connections_open"] == 1
    assert found["gateway_connections_accepted_total"] == 7
    assert found["gateway_worker_up worker=0"] == found["gateway_worker_up worker=1"] == 1
    stays.close()                     # what an open session has moved is counted meanwhile
    wait_for(lambda: len([one for one in gateway.records if one["cause"]]) == 6)
    ended, found = [one for one in gateway.records if one["cause"]], samples(gateway)
    assert found["gateway_bytes_total direction=up"] == sum(
        one["from_client"]["bytes_in"] for one in ended
    )
    assert found["gateway_messages_total direction=down"] == sum(
        one["from_upstream"]["messages"] for one in ended
    )
    assert found["gateway_reloads_total outcome=done"] == 1
    assert found["gateway_reloads_total outcome=failed"] >= 1


def test_totals_outlive_a_worker(start: Starter, client: Client) -> None:
    """One that is killed takes its open sessions with it, and nothing that was counted."""
    gateway = start(head(ADMIN) + ECHO)
    client(gateway).close()
    gateway.record(cause="closed")
    client(gateway)
    os.kill(gateway.ask("status")["workers"][0]["pid"], signal.SIGKILL)
    gateway.said("a worker serves")
    found = samples(gateway)
    assert found["gateway_sessions_total route=echo"] == 2
    assert found["gateway_sessions_open route=echo"] == 0
    assert found["gateway_handshakes_total status=101"] == 2
    assert found["gateway_sessions_ended_total cause=worker died route=echo"] == 1
    assert found["gateway_worker_restarts_total"] == 1
    assert gateway.ask("status")["workers"][0]["restarts"] == 1


def test_metrics_have_what_live_sessions_move(start: Starter, client: Client) -> None:
    """Not only at their end, which may be days away; and not twice then."""
    gateway = start(head(ADMIN) + ECHO)
    one = client(gateway)
    wait_for(lambda: samples(gateway)["gateway_messages_total direction=up"] == 1)
    assert samples(gateway)["gateway_sessions_open route=echo"] == 1
    one.close()
    gateway.record(cause="closed")
    assert samples(gateway)["gateway_messages_total direction=up"] == 1
