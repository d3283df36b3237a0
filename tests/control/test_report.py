"""The report writer: what a line looks like, and that nothing blocks, tears, lies or is lost
without being counted."""

import contextlib
import fcntl
import json
import os
import random
import re
import socket
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.control import report as module
from gateway.control.report import CHUNK_MAX, LINE_MAX, QUEUE_MAX, LineStream, Report, quoted
from gateway.errors import Blame
from gateway.events import AccessRecord, LegCounts

NOON = 1_767_268_800.1234  # 2026-01-01T12:00:00.123Z

RECORD = AccessRecord(
    session="k3jx7q2a-17",
    client="192.0.2.7:50000",
    peer="10.0.0.1:40000",
    listener="127.0.0.1:8080",
    method="GET",
    host="example.com",
    path="/rooms/1",
    query="token=secret",
    route="chat",
    endpoint="10.0.0.9:9000",
    phase="relay",
    status=101,
    cause="closed",
    blame=Blame.CLIENT,
    subprotocol="v1.chat",
    counts=(
        LegCounts(
            bytes_in=100, bytes_out=2000, frames=3, messages=2, payload=88, copied=100,
            not_spliced="no large frame came", close_received=1000, close_sent=1000, pings_sent=1,
            round_trip=0.00425,
        ),
        LegCounts(bytes_in=2000, bytes_out=100, frames=2, messages=1, payload=1990, spliced=2000),
    ),
    started=10.0,
    ended=12.5,
    phases=(("head", 0.001), ("connect", 0.0025), ("relay", 2.4965)),
)


class Pipe:
    """A pipe of one page, with a blocking writing end, as a shell gives it to us."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, 4096)

    def read(self, size: int = 1 << 20) -> bytes:
        try:
            return os.read(self.reading, size)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        for descriptor in (self.reading, self.writing):
            with contextlib.suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


@pytest.fixture(params=["reopened", "polled"])
def stream(request: pytest.FixtureRequest, pipe: Pipe) -> Iterator[LineStream]:
    """Both ways to write to a pipe: opened anew, and, where that is forbidden, polled."""
    if request.param == "polled":
        with patch("os.open", side_effect=PermissionError):
            made = LineStream(pipe.writing, notice)
    else:
        made = LineStream(pipe.writing, notice)
    yield made
    made.close(0)


def notice(lines: int) -> bytes:
    return b"dropped %d\n" % lines


def line(number: int, size: int) -> bytes:
    return (b"%06d" % number).ljust(size - 1, b".") + b"\n"


def read_all(pipe: Pipe, stream: LineStream) -> bytes:
    """Be a reader until nothing waits any more."""
    got = b""
    while stream.waiting:
        got += pipe.read()
        stream.flush()
    return got + pipe.read()


def lines_of(style: str, say: object, *, log_query: bool = False) -> tuple[str, str]:
    """What a report put on its output and its errors while `say(report)` ran."""
    assert callable(say)
    output, errors = Pipe(), Pipe()
    made = Report(
        style=style, log_query=log_query, output=output.writing, errors=errors.writing,
        clock=lambda: NOON,
    )
    say(made)
    made.flush()
    said = [output.read(), errors.read()]
    while made.waiting:                  # more than a pipe takes at once
        made.flush()
        said = [said[0] + output.read(), said[1] + errors.read()]
    made.close()
    output.close()
    errors.close()
    return said[0].decode(), said[1].decode()


# --- What a line looks like -------------------------------------------------------------------


def test_access_text() -> None:
    """Golden: one readable line, without what is empty, and without the query."""
    out, err = lines_of("text", lambda report: report.access(RECORD))
    assert err == ""
    assert out == (
        "2026-01-01T12:00:00.123Z access session=k3jx7q2a-17 client=192.0.2.7:50000"
        " peer=10.0.0.1:40000 listener=127.0.0.1:8080 method=GET host=example.com path=/rooms/1"
        " route=chat endpoint=10.0.0.9:9000 phase=relay status=101 cause=closed blame=client"
        " subprotocol=v1.chat duration_ms=2500.0 phases_ms.head=1.0 phases_ms.connect=2.5"
        " phases_ms.relay=2496.5 carried=both from_client.bytes_in=100 from_client.bytes_out=2000"
        " from_client.frames=3 from_client.messages=2 from_client.payload=88"
        " from_client.carried=copy from_client.copied=100"
        ' from_client.not_spliced="no large frame came"'
        " from_client.close_received=1000 from_client.close_sent=1000 from_client.pings_sent=1"
        " from_client.round_trip_ms=4.25 from_upstream.bytes_in=2000 from_upstream.bytes_out=100"
        " from_upstream.frames=2 from_upstream.messages=1 from_upstream.payload=1990"
        " from_upstream.carried=splice from_upstream.spliced=2000\n"
    )


def test_access_json() -> None:
    """The documented keys, all of them, in their order."""
    out, _ = lines_of("json", lambda report: report.access(RECORD), log_query=True)
    assert out.endswith("\n")
    assert out.count("\n") == 1
    record = json.loads(out)
    assert list(record) == [
        "type", "time", "session", "client", "peer", "listener", "tls", "sni", "method", "host",
        "path", "query", "route", "endpoint", "phase", "status", "cause", "blame", "detail", "cut",
        "subprotocol", "duration_ms", "phases_ms", "carried", "from_client", "from_upstream",
    ]
    assert record["type"] == "access"
    assert record["query"] == "token=secret"
    assert record["phases_ms"] == {"head": 1.0, "connect": 2.5, "relay": 2496.5}
    assert record["from_client"]["round_trip_ms"] == 4.25
    assert record["from_upstream"]["close_received"] is None
    assert record["carried"] == "both"
    assert [record[side]["carried"] for side in ("from_client", "from_upstream")] == [
        "copy", "splice",
    ]
    assert record["from_client"]["not_spliced"] == "no large frame came"
    assert record["from_upstream"]["not_spliced"] == ""
    for key in record:
        assert key == "type" or f"`{key}`" in (module.__doc__ or ""), f"{key} is not documented"
    for key in record["from_client"]:
        assert f"`{key}`" in (module.__doc__ or ""), f"{key} is not documented"


@pytest.mark.parametrize("style", ["text", "json"])
def test_the_query_is_not_logged_unless_asked(style: str) -> None:
    out, _ = lines_of(style, lambda report: report.access(RECORD))
    assert "secret" not in out
    out, _ = lines_of(style, lambda report: report.access(RECORD), log_query=True)
    assert "secret" in out


def test_a_refused_exchange_is_short() -> None:
    """No counters, no endpoint: only what happened."""
    record = AccessRecord(
        session="s-1", client="unix:", peer="unix:", listener="unix:/run/g.sock", phase="head",
        status=400, blame=Blame.CLIENT, detail="The request has two Host fields.",
    )
    out, _ = lines_of("text", lambda report: report.access(record))
    assert out == (
        "2026-01-01T12:00:00.123Z access session=s-1 client=unix: peer=unix:"
        ' listener=unix:/run/g.sock phase=head status=400 blame=client'
        ' detail="The request has two Host fields." duration_ms=0.0\n'
    )
    out, _ = lines_of("json", lambda report: report.access(record))
    assert json.loads(out)["carried"] == ""
    assert json.loads(out)["from_client"]["carried"] == ""


# --- No line is longer than a pipe takes whole ---------------------------------------------------


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize("letters", ["a", '"', "\\", "\x01", "ä", "\U0001f600", "\ud800", "a ="])
def test_a_long_record_is_cut(style: str, letters: str) -> None:
    """Its longest texts are, marked, as little as need be, and inside no character."""
    long = (letters * 16_384)[:16_384]
    said = AccessRecord(
        session="s-1", client="c", peer="p", listener="l", method="GET", host=long[:300],
        path=long, query=long, detail="short", route="chat",
    )
    out, _ = lines_of(style, lambda report: report.access(said), log_query=True)
    assert 4000 < len(out.encode()) <= LINE_MAX
    assert out.endswith("\n")
    assert "chat" in out
    if style == "json":
        fields = json.loads(out)
        for key in ("path", "query"):
            assert fields[key].endswith("...")
            assert long.startswith(fields[key].removesuffix("..."))
        assert fields["detail"] == "short"
        assert fields["from_client"]["bytes_in"] == 0
    else:
        assert out.count("...") >= 2


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_line_that_just_fits_is_whole(style: str) -> None:
    """And one byte more is not."""
    def length(size: int) -> int:
        return len(lines_of(style, lambda report: report.info("m", a="x" * size))[1])

    fits = 1000 + LINE_MAX - length(1000)
    assert length(fits) == LINE_MAX
    assert LINE_MAX - len('""') <= length(fits + 1) <= LINE_MAX
    _, cut = lines_of(style, lambda report: report.info("m", a="x" * (fits + 1)))
    assert "xxx..." in cut


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_long_traceback_is_several_lines_and_whole(style: str) -> None:
    """Its last line is the one that says what it was."""
    trace = "\n".join(["Traceback:", *(f'  File "x{n}.py"' for n in range(400)), "ValueError: no"])
    _, err = lines_of(style, lambda report: report.error(trace, session="s-1"))
    lines = err.splitlines(keepends=True)
    assert max(map(len, lines)) <= LINE_MAX
    if style == "json":
        assert 2 < len(lines) < 10
        assert "\n".join(json.loads(each)["message"] for each in lines) == trace
        assert {json.loads(each)["session"] for each in lines} == {"s-1"}
    else:
        assert len(lines) == 402
        assert "ValueError: no session=s-1" in lines[-1]


def test_a_long_message_is_cut() -> None:
    """Of one line, with what it needs behind it."""
    for style in ("text", "json"):
        _, err = lines_of(style, lambda report: report.error("m" * 9000, pid=7))
        assert len(err) <= LINE_MAX
        assert "mmm..." in err
        assert "pid" in err


def test_log_lines() -> None:
    _, err = lines_of("text", lambda r: r.warning("name does not resolve", name="db x", tries=0))
    assert err == '2026-01-01T12:00:00.123Z warning name does not resolve name="db x" tries=0\n'
    _, err = lines_of("json", lambda r: r.info("serving", pid=4))
    assert json.loads(err) == {
        "type": "log", "time": "2026-01-01T12:00:00.123Z", "level": "info", "message": "serving",
        "pid": 4,
    }


def test_a_traceback_is_several_lines_each_with_its_session() -> None:
    def say(report: Report) -> None:
        report.error("Traceback:\n  File x\nValueError: \x1b[31m", session="s-1")

    _, err = lines_of("text", say)
    assert err.splitlines() == [
        "2026-01-01T12:00:00.123Z error Traceback: session=s-1",
        "2026-01-01T12:00:00.123Z error   File x session=s-1",
        "2026-01-01T12:00:00.123Z error ValueError: \\x1b[31m session=s-1",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain/path:80", "plain/path:80"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('a"b', '"a\\"b"'),
        ("a\\b", '"a\\\\b"'),
        ("a\r\nb\tc", '"a\\r\\nb\\tc"'),
        ("\x1b[2J\x00\x7f\x85", '"\\x1b[2J\\x00\\x7f\\x85"'),
        ("ü", '"ü"'),
        ("\u202e\u2028", '"\\u202e\\u2028"'),
        ("\udc80\U000e0001", '"\\udc80\\U000e0001"'),
    ],
)
def test_quoting(value: str, expected: str) -> None:
    assert quoted(value) == expected


@given(st.text(), st.text(alphabet=st.characters(max_codepoint=0x2030)))
def test_no_value_forges_a_line(path: str, detail: str) -> None:
    """Whatever a client sent: one line, of which a reader gets back exactly what was sent."""
    record = AccessRecord(
        session="s", client="c", peer="p", listener="l", path=path, detail=detail
    )
    out, _ = lines_of("json", lambda report: report.access(record))
    assert out.isascii()
    assert len(out.splitlines()) == 1
    parsed = json.loads(out)
    assert (parsed["path"], parsed["detail"]) == (path, detail)
    out, _ = lines_of("text", lambda report: report.access(record))
    assert len(out.splitlines()) == 1
    assert out[:-1].isprintable()
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", out)
    assert re.findall(r"(\S+)=", bare) == [
        "session", "client", "peer", "listener", *(["path"] if path else []),
        *(["detail"] if detail else []), "duration_ms",
    ]


# --- Never blocks, never tears, drops whole lines and says so ----------------------------------


def test_a_full_pipe_does_not_block_and_loses_nothing_within_the_queue(
    pipe: Pipe, stream: LineStream
) -> None:
    """What does not fit into the pipe waits; it comes whole and in order once somebody reads."""
    sent = [line(number, 300) for number in range(200)]
    begun = time.monotonic()
    for each in sent:
        stream.put(each)
        stream.flush()
    assert time.monotonic() - begun < 1.0
    assert stream.waiting
    assert read_all(pipe, stream) == b"".join(sent)
    assert stream.dropped == 0


def test_a_reader_that_never_reads_costs_whole_lines_which_are_told(
    pipe: Pipe, stream: LineStream
) -> None:
    count = QUEUE_MAX // 1000 + 50
    for number in range(count):
        stream.put(line(number, 1000))
        stream.flush()
    assert stream.dropped > 0
    got = read_all(pipe, stream)
    kept = count - stream.dropped
    expected = [line(number, 1000) for number in range(kept)] + [notice(stream.dropped)]
    assert got == b"".join(expected)
    stream.put(b"after\n")
    stream.flush()
    assert pipe.read() == b"after\n"


def test_a_line_longer_than_the_pipe_is_continued(pipe: Pipe, stream: LineStream) -> None:
    """Nothing may come between its parts, whatever was said meanwhile."""
    long = line(1, 20_000)
    stream.put(line(0, 1000))
    stream.put(long)
    stream.flush()
    got = b""
    number = 2
    while stream.waiting:
        got += pipe.read(777)
        if number < 6:  # more is said while the long line is on its way
            stream.put(line(number, 50))
            number += 1
        stream.flush()
    got += pipe.read()
    assert got == line(0, 1000) + long + b"".join(line(each, 50) for each in range(2, 6))


def test_any_partial_write_keeps_lines_whole() -> None:
    """A descriptor that takes any number of bytes, or none, or is slow: the bytes are the lines."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    taken = bytearray()

    def write(data: bytes) -> int:
        if chance.random() < 0.3:
            raise BlockingIOError(11, "full")
        size = chance.choice([1, 2, len(data), chance.randint(1, len(data))])
        taken.extend(data[:size])
        return size

    with patch.object(module, "_writer", return_value=(write, lambda: None)):
        stream = LineStream(1, notice)
    # Together never more than the queue holds: what is dropped is another test's.
    sent = [line(each, chance.choice([10, 80, 5000])) for each in range(QUEUE_MAX // 5000)]
    for each in sent:
        stream.put(each)
        if chance.random() < 0.7:
            stream.flush()
            taken_lines = bytes(taken).split(b"\n")[:-1]
            assert taken_lines == [each[:-1] for each in sent[: len(taken_lines)]]
    while stream.waiting:
        stream.flush()
    assert bytes(taken) == b"".join(sent)
    assert stream.dropped == 0
    assert stream._queued == 0


def test_a_closed_pipe_is_survived_and_counted(pipe: Pipe, stream: LineStream) -> None:
    """No exception, no memory that grows, no busy waiting for a reader who may never come."""
    os.close(pipe.reading)
    for number in range(100):
        stream.put(line(number, 100))
        stream.flush()
    assert stream.dropped == 100
    assert not stream.waiting
    assert stream._queued == 0


def test_a_fifo_may_get_a_new_reader(tmp_path: Path) -> None:
    """The gap is told to the new one, who begins with a whole line."""
    path = tmp_path / "log"
    os.mkfifo(path)
    first = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(path, os.O_WRONLY)
    stream = LineStream(writing, notice)
    stream.put(b"one\n")
    stream.flush()
    assert os.read(first, 100) == b"one\n"
    os.close(first)
    for _ in range(3):
        stream.put(b"lost\n")
        stream.flush()
    second = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    stream.put(b"lost too\n")
    stream.flush()
    stream.put(b"two\n")
    stream.flush()
    assert os.read(second, 100) == b"dropped 4\ntwo\n"
    assert stream.dropped == 4
    stream.close()
    os.close(second)
    os.close(writing)


def test_the_shared_description_stays_blocking(pipe: Pipe, stream: LineStream) -> None:
    """O_NONBLOCK on what a shell shares with us would break the shell's other children."""
    stream.put(b"x\n")
    stream.flush()
    assert os.get_blocking(pipe.writing)


def test_a_terminal_is_written_without_touching_it() -> None:
    master, slave = os.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    stream = LineStream(slave, notice)
    stream.put(b"hello\n")
    stream.flush()
    assert os.read(master, 100) == b"hello\n"
    assert os.get_blocking(slave)
    stream.close()
    os.close(master)
    os.close(slave)


def test_a_socket_whose_reader_stalls_does_not_block() -> None:
    """The journal of systemd gives us a socket, which cannot be opened anew."""
    near, far = socket.socketpair()
    stream = LineStream(near.fileno(), notice)
    sent = [line(number, 1000) for number in range(QUEUE_MAX // 1000 - 1)]
    for each in sent:
        stream.put(each)
        stream.flush()
    assert os.get_blocking(near.fileno())
    far.setblocking(False)
    got = b""
    while len(got) < len(b"".join(sent)):
        stream.flush()
        got += far.recv(1 << 20)
    assert got == b"".join(sent)
    far.close()
    stream.put(b"x\n")
    stream.flush()
    assert stream.dropped == 1
    stream.close()
    near.close()


def test_a_file_is_appended_where_the_shell_stands(tmp_path: Path) -> None:
    """Opened anew it would be overwritten from its first byte."""
    path = tmp_path / "log"
    with path.open("wb", buffering=0) as file:
        file.write(b"from the shell\n")
        stream = LineStream(file.fileno(), notice)
        stream.put(b"one\n")
        stream.flush()
        file.write(b"from the shell again\n")
        stream.put(b"two\n")
        stream.close()
    assert path.read_bytes() == b"from the shell\none\nfrom the shell again\ntwo\n"


def test_a_full_disk_tears_no_line(pipe: Pipe) -> None:
    """ENOSPC is like a full pipe: what waits, waits."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    full = os.open("/dev/full", os.O_WRONLY)
    stream = LineStream(full, notice)
    stream.put(b"x\n")
    stream.flush()
    assert stream.waiting
    assert stream.dropped == 0
    assert stream.unwritten == 1
    assert stream.trouble == "no space left on device"
    stream.close(0)
    assert stream.dropped == 1, "now it is lost"
    os.close(full)


def messages(pipe: Pipe) -> list[str]:
    """What the log lines in a pipe say, behind time and level."""
    return [text.split(" ", 1)[1] for text in pipe.read().decode().splitlines()]


def test_lost_records_are_told_of_on_the_other_stream_once(tmp_path: Path, pipe: Pipe) -> None:
    """And once more when a new reader of a FIFO gets what is said."""
    path = tmp_path / "log"
    os.mkfifo(path)
    first = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(path, os.O_WRONLY)
    report = Report(output=writing, errors=pipe.writing)
    os.close(first)
    for _ in range(3):
        report.access(RECORD)
        report.flush()
    assert report.dropped == 3
    told = [
        (
            "warning the lines of a stream are being lost "
            'stream="standard output" reason="nobody reads it"'
        )
    ]
    assert messages(pipe) == told
    second = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    report.access(RECORD)
    report.flush()
    assert b"dropped lines=4" in os.read(second, 1 << 16)
    assert messages(pipe) == [
        'info the lines of a stream are written again stream="standard output" dropped=4'
    ]
    os.close(second)
    report.access(RECORD)
    report.flush()
    assert messages(pipe) == told
    report.close()
    os.close(writing)


def test_lost_messages_are_told_of_on_standard_output(pipe: Pipe) -> None:
    """By way of a JSON object among the records, which has a type of its own."""
    reading, writing = os.pipe()
    os.close(reading)
    report = Report(style="json", output=pipe.writing, errors=writing)
    report.info("x")
    report.flush()
    said = json.loads(pipe.read())
    assert (said["type"], said["level"], said["stream"]) == ("log", "warning", "standard error")
    report.close()
    os.close(writing)


def test_a_full_disk_and_a_reader_that_stalls_are_told_of(pipe: Pipe) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    report = Report(output=full, errors=pipe.writing)
    report.access(RECORD)
    report.flush()
    assert 'reason="no space left on device"' in messages(pipe)[0]
    assert report.dropped == 1, "it waits, and in vain"
    report.close()
    os.close(full)
    assert messages(pipe) == ["warning access records were lost at the end lines=1"]
    slow = Pipe()
    report = Report(output=slow.writing, errors=pipe.writing)
    while not report.dropped:
        report.access(RECORD)
        report.flush()
    report.flush()
    assert 'reason="its reader is too slow"' in messages(pipe)[0]
    report.close()
    slow.close()


def test_both_streams_without_a_reader(pipe: Pipe) -> None:
    """Nobody can be told; nothing is tried without end."""
    os.close(pipe.reading)
    report = Report(output=pipe.writing, errors=pipe.writing)
    report.access(RECORD)
    report.info("x")
    report.flush()
    report.flush()
    assert not report.waiting
    report.close()


def test_a_missing_descriptor_is_survived() -> None:
    """`gateway >&-`: nowhere to write to."""
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    stream = LineStream(writing, notice)
    stream.put(b"x\n")
    stream.flush()
    assert stream.dropped == 1
    stream.close()


def test_whole_lines_share_a_write() -> None:
    """A batch costs one write for each chunk, so that other writers of the pipe cannot cut in."""
    writes: list[bytes] = []

    def write(data: bytes) -> int:
        writes.append(data)
        return len(data)

    with patch.object(module, "_writer", return_value=(write, lambda: None)):
        stream = LineStream(1, notice)
    for number in range(10):
        stream.put(line(number, 1000))
    stream.flush()
    assert [len(each) for each in writes] == [4000, 4000, 2000]
    assert all(len(each) <= CHUNK_MAX for each in writes)


def test_closing_waits_a_little_for_a_slow_reader(pipe: Pipe, stream: LineStream) -> None:
    """At the end what waits is given its time, and no more than that."""
    for number in range(20):
        stream.put(line(number, 1000))
    begun = time.monotonic()
    stream.close(0.05)
    assert 0.04 < time.monotonic() - begun < 0.5


def test_descriptors_are_given_back() -> None:
    """Created equals freed."""
    before = len(os.listdir("/proc/self/fd"))
    output, errors = Pipe(), socket.socketpair()
    made = Report(output=output.writing, errors=errors[0].fileno())
    made.close()
    for each in errors:
        each.close()
    output.close()
    assert len(os.listdir("/proc/self/fd")) == before
