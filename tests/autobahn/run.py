"""Runs the suite: starts what is needed, compares, and says what the gateway changed.

    python -m tests.autobahn.run [--fast | --cases "1.*,7.1.1"] [--way client|server]
                                 [--engines E,E] [--proxy gateway|nginx] [--keep FOLDER]

Exit code 1 when a case is spoiled, or differs and is not listed. `--proxy nginx` puts nginx where
the gateway would be: a check of these files themselves, for which `differences.toml` is not used.

- All on loopback; every port is chosen by the kernel.
- A case that is not in order is run again, alone, directly and through the gateway, before it is
  held against anybody: these cases have timers of one second, and a machine may be busy. The
  report names those.
"""

import argparse
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gateway.control.choice import why_no_uring

from . import outcomes
from .install import PYTHON, InstallFailed, install
from .outcomes import Outcome, Verdict

SUITE = Path(__file__).resolve().parent / "suite"
ROOT = SUITE.parents[2]
ALL = "*"
ALL_MESSAGES = 200                     # in each case of 12 and 13; Autobahn's own number is 1000
# All that is about frames, texts, closing and limits; of deflate each size and direction once.
FAST = (
    "1.*,2.*,3.*,4.*,5.*,6.*,7.*,9.1.*,9.2.*,9.3.1,9.3.4,9.3.9,9.4.2,9.4.5,9.5.1,9.5.5,9.6.1,9.6.5,"
    "9.7.*,9.8.3,9.8.6,10.*,12.1.1,12.1.3,12.1.10,12.1.18,12.2.4,12.2.9,12.2.16,12.3.11,12.4.16,"
    "12.5.10,13.1.9,13.2.4,13.3.1,13.3.16,13.4.11,13.5.6,13.6.18,13.7.10,13.7.15"
)
FAST_MESSAGES = 20
START_LIMIT = 30.0                     # seconds, for whatever is started
DIRECTLY = "direct"
RUN_LIMIT = 1800.0                     # for one run of all chosen cases; usually minutes
AGAIN_MAX = 40                         # more cases than this are no accident
STOP_LIMIT = 15.0

# Behind a colon is how relays move in the ring. All have the same rules; how bytes come and go is
# one thing by readiness, under uvloop too, and another by completions.
ENGINES = ("uvloop", "io_uring:readiness", "io_uring:completions")
FULL = ("uvloop", "io_uring:completions")
Proxy = Callable[[int, int, Path], contextlib.AbstractContextManager[int]]


class RunFailed(Exception):
    """A run did not come to an end; the message says which, and how its log ends."""


def _tail(log: Path) -> str:
    """The end of a log, for a message."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


@contextlib.contextmanager
def _child(
    command: list[str], log: Path, pattern: str, environment: dict[str, str]
) -> Iterator[int]:
    """Start a program, wait for the line with its port, and stop it at the end.

    Its output goes to `log` whole. Raises RunFailed.
    """
    found = threading.Event()
    ports: list[int] = []

    def collect() -> None:
        assert process.stdout is not None
        with log.open("w", encoding="utf-8") as out:
            for line in process.stdout:
                out.write(line)
                out.flush()
                match = re.search(pattern, line)
                if match and not ports:
                    ports.append(int(match[1]))
                    found.set()
        found.set()

    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=ROOT, env={**os.environ, **environment},
    )
    thread = threading.Thread(target=collect)
    thread.start()
    try:
        if not found.wait(START_LIMIT) or not ports:
            raise RunFailed(f"{' '.join(command)} did not start:\n{_tail(log)}")
        yield ports[0]
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        thread.join()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def _gateway(engine: str, echo: int, fuzzer: int, folder: Path) -> Iterator[int]:
    name, _, form = engine.partition(":")
    table = folder / f"{engine}.toml"
    table.write_text(
        f'[gateway]\nlisten = ["127.0.0.1:0"]\ncontrol = "off"\n'
        f'engine = "{name}"\nring = "{form or "auto"}"\n\n'
        f'[[route]]\nname = "echo"\npath = "/echo"\nupstream = "ws://127.0.0.1:{echo}"\n\n'
        f'[[route]]\nname = "fuzz"\npath = "/fuzz/*"\nupstream = "ws://127.0.0.1:{fuzzer}"\n',
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "gateway", "--routes", str(table)]
    with _child(command, folder / f"{engine}.log", r"127\.0\.0\.1:(\d+)", {}) as port:
        yield port


def gateways(engines: Iterable[str]) -> dict[str, Proxy]:
    """For each of these engines what starts the gateway in front of both upstreams, and gives its
    port. Those that cannot be had here are left out."""
    missing = why_no_uring()
    return {
        engine: functools.partial(_gateway, engine)
        for engine in engines if not (missing and engine.startswith("io_uring"))
    }


NGINX = """
daemon off; worker_processes 1; pid "{folder}/nginx.pid"; error_log stderr notice;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path "{folder}/body"; proxy_temp_path "{folder}/proxy";
    fastcgi_temp_path "{folder}/fastcgi"; uwsgi_temp_path "{folder}/uwsgi";
    scgi_temp_path "{folder}/scgi";
    proxy_http_version 1.1; proxy_read_timeout 60s;
    proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $http_connection;
    proxy_set_header Host $http_host;
    server {{
        listen 127.0.0.1:{port};
        location /echo {{ proxy_pass http://127.0.0.1:{echo}; }}
        location /fuzz/ {{ proxy_pass http://127.0.0.1:{fuzzer}; }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(echo: int, fuzzer: int, folder: Path) -> Iterator[int]:
    """The peer nginx in front of both upstreams; its port. It cannot choose one itself."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    conf = folder / "nginx.conf"
    text = NGINX.format(folder=folder, port=port, echo=echo, fuzzer=fuzzer)
    conf.write_text(text, encoding="utf-8")
    command = ["nginx", "-p", str(folder), "-c", str(conf)]
    with _child(command, folder / "nginx.log", r"start worker process (\d+)", {}):
        yield port


@dataclass(frozen=True)
class Choice:
    """The cases to run, in the suite's order, and how many messages those of 12 and 13 send."""

    names: tuple[str, ...]
    light: int
    messages: int

    @property
    def words(self) -> str:
        """The names as one argument."""
        return ",".join(self.names)

    @property
    def environment(self) -> dict[str, str]:
        """What the fuzzer reads from its environment."""
        return {"AUTOBAHN_MESSAGES": str(self.messages)}


def choose(patterns: str, messages: int) -> Choice:
    """The choice for Autobahn's patterns. Raises RunFailed for one that means no case."""
    command = [*_suite("fuzzer.py"), "list", patterns]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunFailed(done.stderr.strip())
    listed = json.loads(done.stdout)
    names = tuple(name for name, _ in listed)
    return Choice(names, sum(not heavy for _, heavy in listed), messages)


def _suite(script: str) -> list[str]:
    """The command that runs a script of the suite."""
    return [str(PYTHON), "-W", "ignore", str(SUITE / script)]


_running: set[subprocess.Popen[bytes]] = set()


def _await(command: list[str], log: Path, environment: dict[str, str]) -> None:
    """Run to the end. Raises RunFailed."""
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **environment}
        )
        _running.add(process)
        try:
            code = process.wait(RUN_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RunFailed(f"no end within {RUN_LIMIT} s, see {log}") from None
        finally:
            _running.discard(process)
    if code:
        raise RunFailed(f"{' '.join(command)[:200]} failed:\n{_tail(log)}")


def _stop(*_: object) -> None:
    """SIGTERM: what was started ends, too."""
    for process in tuple(_running):
        process.terminate()
    sys.exit(143)


@dataclass(frozen=True)
class Field:
    """Where everything listens, and where its files are."""

    echo: int
    fuzzer: int
    proxies: dict[str, int]            # the port of each
    folder: Path

    def client(
        self, through: str, choice: Choice, names: tuple[str, ...]
    ) -> dict[str, Outcome]:
        """Autobahn's fuzzing client against the echo server, through a proxy or DIRECTLY."""
        port = self.proxies.get(through)
        url = f"ws://127.0.0.1:{port}/echo" if port else f"ws://127.0.0.1:{self.echo}/"
        label = _label(through, choice, names)
        out = self.folder / f"client-{label}.json"
        alone = ["--alone"] if names != choice.names else []
        command = [*_suite("fuzzer.py"), *alone, "client", url, ",".join(names), str(out)]
        _await(command, self.folder / f"client-{label}.log", choice.environment)
        return outcomes.read(json.loads(out.read_text(encoding="utf-8")))

    def server(
        self, through: str, choice: Choice, names: tuple[str, ...]
    ) -> dict[str, Outcome]:
        """An echo client against Autobahn's fuzzing server, through a proxy or DIRECTLY."""
        port, path = self.proxies.get(through), "/fuzz"
        if not port:
            port, path = self.fuzzer, ""
        label = _label(through, choice, names)
        alone = ["--alone"] if names != choice.names else []
        indices = ",".join(str(choice.names.index(name) + 1) for name in names)
        words = [f"ws://127.0.0.1:{port}{path}", label, str(choice.light), indices]
        command = [*_suite("testee.py"), *alone, "client", *words]
        _await(command, self.folder / f"server-{label}.log", {})
        found = json.loads((self.folder / "server.json").read_text(encoding="utf-8"))
        return outcomes.read(found.get(label, {}))

    def compare(
        self, way: str, choice: Choice, listed: list[outcomes.Difference], done: threading.Barrier
    ) -> list[Verdict]:
        """The runs of one way, and once more, alone, what was not in order.

        `done` is passed when the first runs of all ways are over: until then no one is alone.
        """
        run = self.client if way == "client" else self.server
        try:
            direct = run(DIRECTLY, choice, choice.names)
            proxied = {through: run(through, choice, choice.names) for through in self.proxies}
        except BaseException:
            done.abort()
            raise
        done.wait(2 * len(proxied) * RUN_LIMIT)
        verdicts = []
        for through, found in proxied.items():
            first = outcomes.judge(way, direct, found, listed)
            verdict = first
            names = tuple({**first.spoiled, **first.unlisted, **first.failed_directly})
            if 0 < len(names) <= AGAIN_MAX:
                before = {**direct, **run(DIRECTLY, choice, names)}
                after = {**found, **run(through, choice, names)}
                verdict = outcomes.judge(way, before, after, listed)
            still = {**verdict.spoiled, **verdict.unlisted}
            verdict.again = [
                name for name in {**first.spoiled, **first.unlisted} if name not in still
            ]
            verdict.through = through
            verdicts.append(verdict)
        return verdicts


def _label(through: str, choice: Choice, names: tuple[str, ...]) -> str:
    """Names the files of a run, and its results in the fuzzing server."""
    return through if names == choice.names else f"{through}-again"


def run(
    proxies: dict[str, Proxy],
    choice: Choice,
    folder: Path,
    listed: list[outcomes.Difference],
    ways: tuple[str, ...] = outcomes.WAYS,
) -> list[Verdict]:
    """Run the chosen cases, all ways at once: directly, and through each of these. Raises
    RunFailed."""
    with contextlib.ExitStack() as stack:
        start = stack.enter_context
        port = r"^port (\d+)"
        echo = start(_child([*_suite("testee.py"), "server"], folder / "echo.log", port, {}))
        command = [*_suite("fuzzer.py"), "server", choice.words, str(folder / "server.json")]
        fuzzer = start(_child(command, folder / "fuzzer.log", port, choice.environment))
        ports = {name: start(proxy(echo, fuzzer, folder)) for name, proxy in proxies.items()}
        field = Field(echo, fuzzer, ports, folder)
        done = threading.Barrier(len(ways))
        with ThreadPoolExecutor(len(ways)) as pool:
            runs = [pool.submit(field.compare, way, choice, listed, done) for way in ways]
        failures = [error for run in runs if (error := run.exception()) is not None]
        for error in failures:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return [verdict for run in runs for verdict in run.result()]


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="tests.autobahn.run")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--fast", action="store_true", help="the choice of make test")
    which.add_argument("--cases", default=ALL, help='Autobahn\'s patterns, as in "1.*,7.1.1"')
    parser.add_argument("--way", choices=outcomes.WAYS)
    parser.add_argument("--engines", default=",".join(FULL),
                        help=f"by comma: {', '.join(ENGINES)} (%(default)s)")
    parser.add_argument("--proxy", choices=["gateway", "nginx"], default="gateway")
    parser.add_argument("--keep", type=Path, help="a folder for results and logs, made if needed")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    folder = given.keep or Path(tempfile.mkdtemp(prefix="autobahn-"))
    folder.mkdir(parents=True, exist_ok=True)
    engines = given.engines.split(",")
    if not set(engines) <= set(ENGINES):
        parser.error(f"--engines: one of {', '.join(ENGINES)}, or several by comma")
    proxies: dict[str, Proxy] = {"nginx": nginx} if given.proxy == "nginx" else gateways(engines)
    if given.proxy == "gateway":
        for engine in set(engines) - set(proxies):
            print(f"autobahn: {engine} cannot be had here: {why_no_uring()}")
    listed = outcomes.load() if given.proxy == "gateway" else []
    try:
        install()
        choice = choose(FAST, FAST_MESSAGES) if given.fast else choose(given.cases, ALL_MESSAGES)
        ways = (given.way,) if given.way else outcomes.WAYS
        verdicts = run(proxies, choice, folder.resolve(), listed, ways)
    except (RunFailed, InstallFailed) as failure:
        print(f"autobahn: {failure}\nlogs: {folder}")
        return 1
    for verdict in verdicts:
        print("\n".join(verdict.lines()))
    good = all(verdict.ok for verdict in verdicts)
    if good and not given.keep:
        shutil.rmtree(folder)
    else:
        print(f"results and logs: {folder}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
