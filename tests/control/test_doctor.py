"""What `gateway doctor` says, and that everything works where nothing is compiled."""

import contextlib
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from end_to_end.kit import head, launch, route
from end_to_end.secure import NAMES, Folder, secured, tls_head
from end_to_end.wire import BINARY, TEXT, frame, upgrade
from gateway import __version__
from gateway.control import config, doctor, parts
from gateway.engine import ktls

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "gateway"]

# Comes first on PYTHONPATH: with it no extension module of the gateway can be imported.
WITHOUT_COMPILED = """
import sys

class Finder:
    def find_spec(name, path=None, target=None):
        if name in {names!r}:
            raise {error}

sys.meta_path.insert(0, Finder)
"""
NOT_THERE = "ModuleNotFoundError(f'No module named {name!r}', name=name)"
BROKEN = "ImportError(f'{name}: undefined symbol: io_uring_setup', name=name)"
TABLE = """
[gateway]
listen = ["{listen}"]
{more}
[[route]]
name     = "echo"
upstream = "builtin:echo"
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "doctor", *arguments], capture_output=True, text=True, timeout=30,
        env=os.environ | environment,
    )


def path_without_compiled(folder: Path, error: str = NOT_THERE) -> str:
    """A PYTHONPATH with which nothing of the gateway's is compiled."""
    names = {f"gateway.engine.{module}" for part in parts.PARTS for module in part.modules}
    (folder / "sitecustomize.py").write_text(WITHOUT_COMPILED.format(names=names, error=error))
    return os.pathsep.join([str(folder), str(ROOT)])


def table_of(folder: Path, listen: str = "127.0.0.1:0", more: str = "") -> Path:
    path = folder / "routes.toml"
    path.write_text(TABLE.format(listen=listen, more=more))
    return path


def examined(path: Path) -> tuple[str, bool]:
    """The report on a table, and whether all is there."""
    return doctor.examine(config.load(path))


def line_with(text: str, words: str) -> str:
    """The one line that has these words."""
    (found,) = [line for line in text.splitlines() if words in line]
    return found


def test_it_says_what_is_here() -> None:
    """Facts of this machine, as the kernel has them; all is well without a table."""
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert f"gateway {__version__}, Python {platform.python_version()}" in text
    assert f"Linux {platform.release()}" in text
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert str(hard) in line_with(text, "open files")
    somaxconn = Path("/proc/sys/net/core/somaxconn").read_text().strip()
    assert f"net.core.somaxconn: {somaxconn} " in text
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert f" {last - first + 1} connections" in line_with(text, "ip_local_port_range")
    assert " ns, " in line_with(text, "a system call takes about")
    assert "locked memory" in text
    assert 'engine = "auto" runs uvloop' in text


def test_the_cost_of_a_call_is_plausible() -> None:
    assert 10 < doctor.call_cost_ns() < 100_000


def test_what_a_table_demands_and_has(tmp_path: Path) -> None:
    done = run("--routes", str(table_of(tmp_path)))
    assert done.returncode == 0, done.stdout
    assert 'ok      engine = "auto" can be had' in done.stdout


@pytest.mark.parametrize(("days", "words", "level"), [
    (60.5, "is good until", "ok"), (20.5, "for 20 days", "note"), (-1, "ended on", "MISSING"),
])
def test_certificates_of_a_table(
    tmp_path: Path, days: float, words: str, level: str
) -> None:
    """Until when each is good."""
    own = Folder(tmp_path)
    own.issue("a", "a.test", days=days)
    path = tmp_path / "routes.toml"
    path.write_text(own.listener("a") + route("echo", "builtin:echo"))
    text, has_all = examined(path)
    line = line_with(text, "a.crt")
    assert line.strip().startswith(level)
    assert words in line
    assert has_all == (level != "MISSING")
    (tmp_path / "a.key").unlink()
    text, has_all = examined(path)
    assert not has_all
    assert "no such file" in line_with(text, "MISSING")


def test_tls_in_python_has_no_tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, with what would make it better."""
    if not parts.OPENSSL.why_missing():
        assert "resumed by tickets" in line_with(doctor.examine(None)[0], "tickets")
    monkeypatch.setattr(
        doctor, "OPENSSL", parts.Part("openssl", ("nothing",), (), "")
    )
    assert "  note    no session is resumed" in line_with(doctor.examine(None)[0], "by a ticket")


def test_a_table_that_is_refused(tmp_path: Path) -> None:
    done = run("--routes", str(table_of(tmp_path, more='enginee = "auto"')))
    assert (done.returncode, done.stdout) == (1, "")
    assert "enginee" in done.stderr


def test_an_engine_that_cannot_run_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a note where no table demands it, and missing where one does."""
    monkeypatch.setattr(doctor, "why_no_uring", lambda: "kernel.io_uring_disabled is 2")
    text, has_all = doctor.examine(None)
    assert has_all
    assert line_with(text, "io_uring cannot run").startswith("  note")
    assert 'engine = "auto" runs uvloop' in text
    text, has_all = examined(table_of(tmp_path, more='engine = "io_uring"'))
    assert not has_all
    assert line_with(text, "  MISSING").endswith(
        'engine = "io_uring" cannot run: kernel.io_uring_disabled is 2'
    )
    assert 'engine = "auto" runs uvloop instead' in text
    assert examined(table_of(tmp_path, more='engine = "auto"'))[1]


def test_completions_that_a_table_demands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be refused where io_uring is not; the start would be, too."""
    monkeypatch.setattr(doctor, "why_no_uring", lambda: "")
    monkeypatch.setattr(doctor, "why_no_completions", lambda: "registering buffers: EINVAL")
    text, has_all = examined(
        table_of(tmp_path, more='engine = "io_uring"\nring = "completions"')
    )
    assert not has_all
    assert line_with(text, "  MISSING").endswith(
        'ring = "completions" cannot be had: registering buffers: EINVAL'
    )
    assert 'ring = "readiness" can be had' in text
    text, has_all = examined(table_of(tmp_path, more='engine = "io_uring"\nring = "readiness"'))
    assert has_all
    assert line_with(text, 'ring = "readiness" can be had').startswith("  ok")
    monkeypatch.setattr(doctor, "ring_form", lambda: ("readiness", "said so"))
    text, _ = examined(table_of(tmp_path, more='engine = "io_uring"'))
    assert line_with(text, 'ring = "auto" is readiness: said so').startswith("  ok")


def test_no_engine_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "why_no_uring", lambda: "forbidden")
    monkeypatch.setattr(doctor, "_why_no_uvloop", lambda: "No module named 'uvloop'")
    text, has_all = examined(table_of(tmp_path))
    assert not has_all
    assert "cannot run: uvloop: No module named 'uvloop'" in line_with(text, "MISSING")


def test_descriptors_that_do_not_suffice(tmp_path: Path) -> None:
    """In a process that may open 700 files."""
    path = table_of(tmp_path, more="max_sessions = 100")
    limited = ["sh", "-c", 'ulimit -n 700; exec "$@"', "sh", *COMMAND, "doctor"]
    limited += ["--routes", str(path)]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1, done.stdout
    assert "700 open files are enough for 94" in line_with(done.stdout, "MISSING")
    assert "raise the limit to 712" in done.stdout
    assert line_with(done.stdout, "open files: 700").startswith("  note")


def test_a_port_that_is_not_for_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_has_capability", lambda _: False)
    monkeypatch.setattr(
        doctor, "_numbers", lambda name: [1024] if name.endswith("port_start") else [4096, 8192]
    )
    text, has_all = examined(table_of(tmp_path, "127.0.0.1:443"))
    assert not has_all
    assert "127.0.0.1:443: ports below 1024" in line_with(text, "MISSING")
    assert examined(table_of(tmp_path, "127.0.0.1:8443"))[1]
    assert examined(table_of(tmp_path, f"unix:{tmp_path}/gateway.sock"))[1]


def test_a_backlog_that_the_kernel_does_not_grant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said, and no reason to refuse: fewer clients may wait, that is all."""
    monkeypatch.setattr(
        doctor, "_numbers", lambda name: [128] if name.endswith("somaxconn") else [4096, 8192]
    )
    text, has_all = examined(table_of(tmp_path))
    assert has_all
    assert "backlog = 4096, of which the kernel grants 128" in line_with(text, "backlog")


def test_pipes_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relays copy then; the reason and the sysctl are said."""
    if parts.RELAY.why_missing():
        pytest.skip("relays are not compiled here")

    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("fcntl.fcntl", refuse)
    text, has_all = doctor.examine(None)
    assert has_all
    assert "nothing is spliced" in line_with(text, "256 KiB cannot be had")
    assert "fs.pipe-user-pages-soft" in text


SOME = frozenset({(ktls.TLS_1_3, ktls.AES_128), (ktls.TLS_1_2, ktls.AES_128)})


@pytest.mark.parametrize(("found", "level", "told"), [
    (ktls.Support("it has none"), "note", "TLS stays in user space, and what it carries is copied"),
    (ktls.Support("", SOME), "ok", "AES-128-GCM; a KeyUpdate ends the session"),
    (ktls.Support("", SOME, rekeys=True), "ok", "AES-128-GCM; a KeyUpdate is followed"),
], ids=["none", "some", "new keys"])
def test_whether_the_kernel_does_tls(
    monkeypatch: pytest.MonkeyPatch, found: ktls.Support, level: str, told: str
) -> None:
    """What was tried, and how to get it."""
    if parts.RELAY.why_missing():
        pytest.skip("relays are not compiled here")
    monkeypatch.setattr(ktls, "support", lambda: found)
    text, has_all = doctor.examine(None)
    assert has_all
    assert line_with(text, told).split()[0] == level
    assert ("modprobe tls" in text) == bool(found.missing)


# --- Where nothing is compiled --------------------------------------------------------------------


def test_it_says_what_was_not_compiled_and_how_to_get_it(tmp_path: Path) -> None:
    """By Debian package; that is no failure."""
    done = run(PYTHONPATH=path_without_compiled(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "relay is not here (not built): relays run in Python" in done.stdout
    assert "apt-get install gcc libc6-dev python3-dev, then" in done.stdout
    assert "apt-get install gcc libc6-dev python3-dev liburing-dev, then" in done.stdout
    assert "openssl is not here (not built): TLS runs by Python's ssl" in done.stdout
    assert "apt-get install gcc libc6-dev python3-dev libssl-dev, then" in done.stdout
    assert line_with(done.stdout, "relays run in Python, and every").startswith("  note")
    assert 'engine = "auto" runs uvloop' in done.stdout


def test_a_part_that_is_broken_says_how(tmp_path: Path) -> None:
    """Built against other libraries than those that are here."""
    done = run(PYTHONPATH=path_without_compiled(tmp_path, BROKEN))
    assert done.returncode == 0, done.stderr
    assert "undefined symbol: io_uring_setup" in done.stdout


@pytest.mark.parametrize("error", [NOT_THERE, BROKEN])
def test_the_gateway_works_where_nothing_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """Echoes small and large, through a relay to another gateway's built-in endpoint."""
    monkeypatch.setenv("PYTHONPATH", path_without_compiled(tmp_path, error))
    with launch(head() + route("echo", "builtin:echo"), tmp_path, engine="auto") as inner:
        start = line_with(inner.messages, "serving")
        assert '"engine":"uvloop"' in start
        assert '"relays":"Python (gateway doctor says why)"' in start
        folder = tmp_path / "outer"
        folder.mkdir()
        table = head() + route("ws", f"ws://127.0.0.1:{inner.port}/echo")
        with launch(table, folder, engine="auto") as outer, outer.connect() as client:
            client.send(upgrade("/ws"))
            assert client.read_head().status == 101
            for opcode, size in ((TEXT, 5), (BINARY, 200_000), (TEXT, 70_000)):
                with client.sending(frame(opcode, b"x" * size)):
                    came = [client.read_frame()]
                    while not came[-1].fin:
                        came.append(client.read_frame())
                assert came[0].opcode == opcode
                assert b"".join(got.payload for got in came) == b"x" * size
            client.close()
            record = outer.record(route="ws")
            assert record["carried"] == "copy"


def test_tls_works_where_nothing_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Toward clients and toward upstreams, with a certificate of the gateway's own between them."""
    monkeypatch.setenv("PYTHONPATH", path_without_compiled(tmp_path))
    own = Folder(tmp_path)
    own.issue("a", *NAMES)
    own.issue("outer", "outer.test", subject="outer")
    demands = f'client_certificates = "require", client_ca = "{own.ca}"'
    echo = route("echo", "builtin:echo")
    with contextlib.ExitStack() as stack:
        folders = [tmp_path / name for name in ("inner", "outer")]
        for folder in folders:
            folder.mkdir()
        inner = stack.enter_context(
            launch(tls_head() + own.listener("a", more=demands) + echo, folders[0])
        )
        outer = stack.enter_context(launch(
            tls_head() + own.listener("a") + route("ws", "inner") + "[upstream.inner]\n"
            f'endpoints = ["wss://localhost:{inner.port}/echo"]\ntls.ca = "{own.ca}"\n'
            f"tls.certificate = {own.named('outer')}\n",
            folders[1],
        ))
        assert '"tls":"Python (gateway doctor says why)"' in line_with(outer.messages, "serving")
        client = stack.enter_context(secured(outer, own.client()))
        client.send(upgrade("/ws"))
        assert client.read_head().status == 101
        client.send(frame(TEXT, b"x" * 100_000))
        came = [client.read_frame()]
        while not came[-1].fin:
            came.append(client.read_frame())
        assert b"".join(got.payload for got in came) == b"x" * 100_000
        client.close()
        assert outer.record(route="ws")["tls"] == "TLSv1.3"
        assert inner.record(route="echo")["sni"] == "localhost"


def test_the_start_line_says_that_relays_are_compiled(tmp_path: Path) -> None:
    """Where they are."""
    if parts.RELAY.why_missing():
        pytest.skip("relays are not compiled here")
    with launch(head() + route("echo", "builtin:echo"), tmp_path) as gateway:
        assert '"relays":"compiled"' in line_with(gateway.messages, "serving")
