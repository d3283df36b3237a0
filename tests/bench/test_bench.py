"""The benchmark's own tests: what it reports can be believed. Nothing here asserts a time.

The compiled parts are built and echo a few messages; what spoils a message is noticed; the
statistics and verdicts are right on numbers whose answer is known; the report renders.
"""

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import build, cases, chart, machine, report, stats
from bench.__main__ import _as_json, _chosen, _chosen_cases, _read, main
from bench.figures import check
from bench.floors import Floor
from bench.load import Load, LoadError
from bench.peers.base import FRAMES, RAW, ROOT
from bench.peers.gateway import Gateway
from bench.process import Running, StartError, is_listening
from bench.proxies import everything
from bench.publish import BEGIN, END, publish

no_compiler = build.missing("load")
compiled = pytest.mark.skipif(bool(no_compiler), reason=no_compiler or "it can be compiled")


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    with Load() as one:
        yield one


# --- Statistics ---------------------------------------------------------------------------------


def test_median_is_the_middle() -> None:
    assert stats.median([3.0, 1.0, 2.0]) == 2.0
    assert stats.median([4.0, 1.0, 2.0, 3.0]) == 2.5
    with pytest.raises(ValueError, match="nothing"):
        stats.median([])


@pytest.mark.parametrize(
    ("count", "cut", "coverage"),
    [(1, 0, 0.0), (3, 0, 0.75), (5, 0, 0.9375), (6, 0, 0.96875), (9, 1, 0.9609375),
     (12, 2, 0.961426), (15, 3, 0.964844), (25, 7, 0.956714)],
)
def test_interval_is_that_of_the_sign_test(count: int, cut: int, coverage: float) -> None:
    """Known values of the binomial interval for a median at 95 per cent."""
    found = stats.interval([float(value) for value in range(count)])
    assert (found.low, found.high) == (cut, count - 1 - cut)
    assert found.coverage == pytest.approx(coverage, abs=1e-6)


@given(st.lists(st.floats(min_value=0, max_value=1e9), min_size=1, max_size=40))
def test_interval_holds_its_median(values: list[float]) -> None:
    found = stats.interval(values)
    assert min(values) <= found.low <= found.middle <= found.high <= max(values)


def test_ratios_need_the_same_rounds() -> None:
    assert stats.ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="shorter"):
        stats.ratios([1.0, 2.0], [1.0])


# --- The load generator and the floors ----------------------------------------------------------


@compiled
@pytest.mark.parametrize("size", [8, 125, 126, 65535, 65536, 1 << 20])
def test_the_load_echoes_with_itself(load: Load, size: int) -> None:
    """Every size of a frame's length field; exactly the messages that were ordered."""
    try:
        assert load.open(load.frames_port, 4)["done"] == 4
        answer = load.run(4, size, seconds=20, messages=300)
        assert answer["messages"] == answer["all_messages"] == 300
        assert answer["checked"] >= 1, "a sample is compared byte by byte"
        assert 0 < answer["p50_ns"] <= answer["p99_ns"] <= answer["p999_ns"]
    finally:
        load.close()


@compiled
@pytest.mark.parametrize("form", ["epoll", "splice", "uring"])
def test_a_floor_carries_what_it_is_given(load: Load, form: str, tmp_path: Path) -> None:
    floor, port = Floor(form), cases.free_port()
    if reason := floor.missing():
        pytest.skip(reason)
    command = floor.command(FRAMES, port, load.frames_port, tmp_path)
    try:
        running = Running(command, port, tmp_path)
    except StartError as error:
        if form == "uring" and "no ring" in str(error):
            pytest.skip("io_uring is not allowed here")
        raise
    with running:
        load.pids(running.pids())
        for size in (64, 70_000, 3 << 20):
            load.open(port, 4)
            answer = load.run(4, size, seconds=20, messages=100)
            assert answer["all_messages"] == 100
            assert answer["cpu_ns"] > 0
            assert load.close()["done"] == 4
        assert load.cycle(port, 20, 4)["done"] == 20
        assert running.memory() > 0


@compiled
def test_the_raw_upstream_echoes_bytes(load: Load) -> None:
    sent = bytes(range(256)) * 4000
    with socket.create_connection(("127.0.0.1", load.raw_port), timeout=20) as stream:
        sender = threading.Thread(target=stream.sendall, args=(sent,))
        sender.start()
        received = b""
        while len(received) < len(sent):
            received += stream.recv(1 << 20)
        sender.join()
        assert received == sent
        stream.shutdown(socket.SHUT_WR)
        assert stream.recv(1) == b""


def _carry(one: socket.socket, other: socket.socket, change: Callable[[bytes], bytes]) -> None:
    try:
        while data := one.recv(1 << 16):
            other.sendall(change(data))
        other.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the load gives up on a spoilt stream; that is the point


def _spoiler(upstream: int, change: Callable[[bytes], bytes]) -> tuple[socket.socket, int]:
    """A proxy for one connection that changes what comes down."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        client, _ = listening.accept()
        with client, socket.create_connection(("127.0.0.1", upstream)) as server:
            up = threading.Thread(target=_carry, args=(client, server, bytes))
            up.start()
            _carry(server, client, change)
            up.join(20)

    threading.Thread(target=serve, daemon=True).start()
    port: int = listening.getsockname()[1]
    return listening, port


def _is_frame(data: bytes) -> bool:
    return data[:1] == b"\x82"


SPOILT: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda d: d[:-1] + bytes([d[-1] ^ 1]) if _is_frame(d) else d, "a byte has changed"),
    (lambda d: d[:2] + b"\0\0\0\0" + d[6:] if _is_frame(d) else d, "another message"),
    (lambda d: d[:1] + bytes([d[1] + 1]) + d[2:] + b"x" if _is_frame(d) else d, "too long"),
    (lambda d: b"\xc2" + d[1:] if _is_frame(d) else d, "reserved bits"),
    (lambda d: d.replace(b"Accept: ", b"Accept: x"), "accept key"),
    (lambda d: d.replace(b"101", b"502"), "HTTP/1.1 502"),
    (lambda d: b"\x88\x02\x03\xe9" if _is_frame(d) else d, "closed by the other side"),
]


def _talk(load: Load, port: int) -> None:
    load.open(port, 1)
    load.run(1, 64, seconds=20, messages=200)


@compiled
@pytest.mark.parametrize(("change", "reason"), SPOILT, ids=[reason for _, reason in SPOILT])
def test_what_is_not_right_is_no_message(change: Callable[[bytes], bytes], reason: str) -> None:
    with Load() as load:
        listening, port = _spoiler(load.frames_port, change)
        with listening, pytest.raises(LoadError, match=reason):
            _talk(load, port)


@compiled
def test_nobody_listening_is_an_error(load: Load) -> None:
    with pytest.raises(LoadError, match=r"refused"):
        load.open(cases.free_port(), 1)


# --- Running and measuring ----------------------------------------------------------------------


def test_a_program_that_ends_is_told_with_its_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such option')"]
    with pytest.raises(StartError, match="no such option"):
        Running(command, cases.free_port(), tmp_path)


def test_a_program_is_found_listening_and_stopped(tmp_path: Path) -> None:
    port = cases.free_port()
    script = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); s.accept()"
    with Running([sys.executable, "-c", script], port, tmp_path) as running:
        assert is_listening(port)
        assert len(running.pids()) == 1
    assert not is_listening(port)


@compiled
def test_a_case_gives_samples_and_names_failures(load: Load) -> None:
    """One short round of every kind of case, with a proxy that cannot start beside it."""

    class Broken(Floor):
        name = "broken"

        def __init__(self) -> None:
            pass

        def command(self, mode: str, listen: int, upstream: int, place: Path) -> list[str]:
            return [sys.executable, "-c", "raise SystemExit('broken')"]

    plan = cases.Plan(rounds=1, seconds=0.02, warm_up=0.0, idle=20, cycles=10)
    outcome = cases.Outcome()
    for case in _chosen_cases("64,idle,open"):
        cases.run_case(case, [Broken(), Floor("epoll")], load, plan, outcome, print)
    assert {(name, proxy) for name, proxy in outcome.failures} == {
        ("64", "broken"), ("idle", "broken"), ("open", "broken")
    }
    assert outcome.values("64", "floor-epoll", "cpu_us")[0] > 0
    assert outcome.values("idle", "floor-epoll", "idle_bytes")
    assert outcome.values("open", "floor-epoll", "cycle_cpu_us")[0] > 0


def test_every_proxy_has_a_command(tmp_path: Path) -> None:
    """Configurations are written with both ports in them, in every mode."""
    for proxy in everything(["uvloop"]):
        if proxy.missing():
            continue
        for mode in proxy.modes:
            place = tmp_path / proxy.name / mode
            place.mkdir(parents=True)
            command = proxy.command(mode, 12345, 23456, place)
            text = " ".join(command) + "".join(path.read_text() for path in place.iterdir())
            assert "12345" in text, proxy.name
            assert "23456" in text, proxy.name
            assert "@" not in "".join(p.read_text() for p in place.glob("*.[ct]o*")), proxy.name


def test_the_gateway_runs_with_the_chosen_engine(tmp_path: Path) -> None:
    Gateway("io_uring").command(RAW, 1, 2, tmp_path)
    table = (tmp_path / "routes.toml").read_text()
    assert 'engine = "io_uring"' in table
    assert "tcp://127.0.0.1:2" in table


def test_another_tree_is_measured_and_its_form_told(tmp_path: Path) -> None:
    """A tree where nothing is compiled says so, and a change of its files is seen."""
    package = tmp_path / "gateway"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "7.8.9"\n')
    gateway = Gateway("uvloop", tmp_path)
    assert gateway.version() == f"7.8.9, Python relay, files {gateway.fingerprint()}"
    before = gateway.fingerprint()
    (package / "added.py").write_text("")
    assert gateway.fingerprint() != before
    assert Gateway("uvloop", package).missing()


# --- Reports ------------------------------------------------------------------------------------

CPU = {"floor-epoll": 8.0, "floor-splice": 10.0, "gateway-uvloop": 9.0, "nginx": 10.0,
       "haproxy": 12.0}


def _canned() -> report.Run:
    """Three rounds, of which the second is twice as slow for all: ratios do not move."""
    outcome = cases.Outcome()
    for number in range(3):
        drift = 2.0 if number == 1 else 1.0
        for proxy, cpu in CPU.items():
            figures = {
                "cpu_us": cpu * drift, "messages_per_s": 1e5, "p50_us": 500.0,
                "p99_us": 100 * cpu * drift, "p999_us": 3000.0, "busy_part": 0.9,
                "load_busy_part": 0.8, "waited_part": 0.0, "load_waited_part": 0.01,
            }
            outcome.samples.append(cases.Sample("64", proxy, number, figures))
            idle = {**figures, "alone_cpu_us": cpu * drift / 1.05, "idle_bytes": 3072.0,
                    "open_cpu_us": 50.0}
            outcome.samples.append(cases.Sample("idle", proxy, number, idle))
    outcome.failures["1m", "haproxy"] = "it\nbroke"
    kinds = {name: name.split("-")[0] for name in CPU}
    return report.Run(
        outcome=outcome,
        proxies={
            name: (kind if kind in ("floor", "gateway") else "peer", "1.0", "on, to /dev/null")
            for name, kind in kinds.items()
        },
        machine=machine.describe(100.0),
        plan={"rounds": 3, "seconds": 1.0, "warm_up": 0.1, "idle": 4000, "cycles": 10,
              "proxy_core": 1, "load_core": 0},
    )


def test_verdicts_follow_from_ratios_within_a_round() -> None:
    """9 of 8 µs misses 1.10 of the floor, 9 of 10 passes beside the best peer; 3 KiB is a miss."""
    (field,) = _canned().fields()
    found = {verdict.text: verdict for verdict in check(field)}
    floor = found["CPU per echoed 64 B, 64 connections message, of the floor"]
    peer = found["CPU per echoed 64 B, 64 connections message, of the best peer"]
    assert (floor.against, floor.word) == ("floor-epoll", "miss")
    assert floor.found is not None
    assert (floor.found.low, floor.found.middle, floor.found.high) == (1.125, 1.125, 1.125)
    assert (peer.against, peer.word) == ("nginx", "pass")
    words = [verdict.word for verdict in check(field)]
    assert words == ["miss", "pass", *["not measured"] * 12, "pass", "pass", "not measured",
                     "miss", "not measured"]


def test_the_report_tells_what_was_measured_and_how() -> None:
    text = report.render(_canned())
    assert "| gateway-uvloop | 9.00 [9.00, 18.0] (1.12) |" in text
    assert "75% interval" in text
    assert "100 ns for getppid" in text
    assert "Access records are on for all" in text
    assert "- haproxy, 1m: it broke" in text
    assert "### gateway-uvloop" in text
    assert "| miss |" in text
    assert "1.0% of the time" in text
    assert "The load's core was idle for 19% of the time at least (64 B, floor-epoll;" in text
    assert "less than 5% in 0 of 5 lines" in text


def test_the_chart_is_a_picture() -> None:
    picture = ElementTree.fromstring(chart.draw(_canned()))
    bars = picture.findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == len(CPU)
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths == sorted(widths), "the lowest stands first"


def test_a_kept_run_renders_the_same(tmp_path: Path) -> None:
    run, path = _canned(), tmp_path / "run.json"
    run.warnings.append("The files changed.")
    path.write_text(json.dumps(_as_json(run)))
    assert report.render(_read(path)) == report.render(run)
    assert "**The files changed.**" in report.render(run)
    main(["--report", str(path)])
    assert path.with_suffix(".md").read_text() == report.render(run)
    ElementTree.fromstring(path.with_suffix(".svg").read_text())


def test_a_run_is_published_between_its_marks(tmp_path: Path) -> None:
    """Nothing else of the README changes, and a second run takes the place of the first."""
    readme = tmp_path / "README.md"
    (tmp_path / "docs").mkdir()
    readme.write_text(f"# Before\n\n{BEGIN}\n\nold\n\n{END}\n\n## After\n")
    for _ in range(2):
        publish(_canned(), tmp_path)
        text = readme.read_text()
        assert text.startswith(f"# Before\n\n{BEGIN}\n")
        assert text.endswith(f"\n{END}\n\n## After\n")
        assert "old" not in text
        assert text.count("| gateway-uvloop | 9.00 [9.00, 18.0] (1.12) |") == 1
        assert "](docs/performance.svg)" in text
    ElementTree.fromstring((tmp_path / "docs" / "performance.svg").read_text())
    readme.write_text("# Nothing of the kind\n")
    with pytest.raises(ValueError, match=r"README\.md has no"):
        publish(_canned(), tmp_path)


def test_the_readme_has_a_place_for_a_run() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count(BEGIN) == 1
    assert END in text.partition(BEGIN)[2]


def test_numbers_have_three_digits() -> None:
    shown = [report.number(value) for value in (0.1234, 9.876, 12.34, 123.4, 12345.6)]
    assert shown == ["0.12", "9.88", "12.3", "123", "12,346"]


def test_choices_are_checked() -> None:
    proxies = everything(["uvloop", "io_uring"])
    names = [proxy.name for proxy in _chosen(proxies, "gateway,nginx")]
    assert names == ["gateway-uvloop", "gateway-io_uring", "nginx"]
    with pytest.raises(SystemExit, match="no such proxy: apache"):
        _chosen(proxies, "apache")
    with pytest.raises(SystemExit, match="no such case: 2m"):
        _chosen_cases("64,2m")
