"""The built-in page in headless Chromium: a person opens it, connects to /echo, and sends.

The browser is driven over its DevTools protocol, and asked only for what a person would see: the
text of the state, the log and the figures. What the page must do happens in the browser's own
WebSocket, through the gateway.

Needs Debian's `chromium`; without it these tests are skipped, in CI they fail. To trust the CA of
`gateway certs`, as certs/README.md says it, takes `certutil` of Debian's `libnss3-tools`.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from websockets.sync.client import ClientConnection, connect

from end_to_end.kit import Gateway, Starter, head, route, run

CHROMIUM = shutil.which("chromium")
CERTUTIL = shutil.which("certutil")
ROOT = Path(__file__).parents[2]
PATIENCE = 30.0  # seconds; a browser on a busy machine takes its time

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--no-first-run", "--no-default-browser-check",
    "--no-proxy-server", "--remote-debugging-port=0",
]


class Browser:
    """A running Chromium, over the DevTools protocol."""

    def __init__(self, line: ClientConnection) -> None:
        self._line = line
        self._ids = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, session: str = "", **parameters: object) -> dict[str, Any]:
        """Call a method, and return its result. Events that come before it are kept."""
        number = next(self._ids)
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        self._line.send(json.dumps(message))
        while True:
            answer: dict[str, Any] = json.loads(self._line.recv(PATIENCE))
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self.events.append(answer)

    def open(self, url: str) -> "Page":
        """A new tab, when its document is loaded."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable", session)
        answer = self.ask("Page.navigate", session, url=url)
        assert "errorText" not in answer, answer
        page.wait("document.readyState === 'complete' && location.href !== 'about:blank'")
        return page


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        result = self._browser.ask(
            "Runtime.evaluate", self._session, expression=expression,
            awaitPromise=True, returnByValue=True,
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript condition holds, looking again at each change of the page."""
        self.run(f"""new Promise((done, failed) => {{
            const look = () => {{ if ({condition}) {{ watch.disconnect(); done(); }} }};
            const watch = new MutationObserver(look);
            watch.observe(document, {{subtree: true, childList: true, attributes: true,
                                      characterData: true}});
            addEventListener("load", () => setTimeout(look));
            setTimeout(() => failed(new Error("never: " + {json.dumps(condition)} + " but: "
                + document.body.innerText)), {PATIENCE * 900});
            look();
        }})""")

    def click(self, element: str) -> None:
        """Click on the element of this id, which must be one that a person could click."""
        self.run(f"""(() => {{
            const button = document.getElementById("{element}");
            if (button.disabled) throw new Error("{element} is disabled");
            button.click();
        }})()""")

    def fill(self, element: str, value: str) -> None:
        """Write into the field of this id."""
        self.run(f"document.getElementById('{element}').value = {json.dumps(value)}")

    def text(self, element: str) -> str:
        """What is to be read in the element of this id."""
        return str(self.run(f"document.getElementById('{element}').innerText"))

    def wait_text(self, element: str, part: str) -> None:
        """Wait until this is to be read there."""
        self.wait(f"document.getElementById('{element}').innerText.includes({json.dumps(part)})")

    def complaints(self) -> list[str]:
        """What the browser has against the page: errors, and what its policy blocked."""
        self.run("0")  # events of all that happened before come before this answer
        return [
            json.dumps(event["params"])
            for event in self._browser.events
            if event.get("sessionId") == self._session
            and event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")
        ]


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `gateway certs` makes."""
    folder = tmp_path_factory.mktemp("certs")
    done = run("certs", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, certs: Path) -> Iterator[Browser]:
    """A Chromium with a fresh profile, which trusts our CA if it can be told to; it ends with the
    module."""
    assert CHROMIUM
    profile = tmp_path_factory.mktemp("chromium")
    if CERTUTIL:
        database = profile / ".pki" / "nssdb"
        database.mkdir(parents=True)
        for more in (["-N", "--empty-password"],
                     ["-A", "-t", "C,,", "-n", "ours", "-i", str(certs / "ca.crt")]):
            subprocess.run([CERTUTIL, "-d", f"sql:{database}", *more], check=True, timeout=PATIENCE)
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HOME": str(profile)},
        start_new_session=True,
    )
    assert process.stderr
    said = _Stderr(process.stderr)
    try:
        with connect(said.address(), max_size=None, open_timeout=PATIENCE) as line:
            browser = Browser(line)
            yield browser
            browser.ask("Browser.close")
        process.wait(PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):  # its children, if any outlived it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        said.join()


class _Stderr:
    """Reads what the browser says, to find its address, and so that it never waits for us."""

    def __init__(self, pipe: IO[str]) -> None:
        self._lines: list[str] = []
        self._found = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def _read(self, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                self._lines.append(line)
                if "DevTools listening on " in line:
                    self._found.set()
        self._found.set()

    def address(self) -> str:
        """The URL of the DevTools protocol, when the browser has told it."""
        assert self._found.wait(PATIENCE), self._lines
        line = next((one for one in self._lines if "DevTools listening on " in one), None)
        assert line, f"chromium ended: {self._lines}"
        return line.rpartition(" ")[2].strip()

    def join(self) -> None:
        """Wait for the end of the pipe."""
        self._thread.join(PATIENCE)


@pytest.fixture(scope="module")
def gateway(start_shared: Starter) -> Gateway:
    """The routes of the demo: the page, and the echo that it is for."""
    return start_shared(
        head() + route("page", "builtin:page", path="/") + route("echo", "builtin:echo")
    )


@pytest.fixture
def page(browser: Browser, gateway: Gateway) -> Page:
    """The page, connected to the echo that it proposes itself."""
    page = browser.open(gateway.url("/", "http"))
    assert page.run("document.getElementById('url').value") == gateway.url("/echo")
    assert page.text("state-text") == "closed"
    page.click("connect")
    page.wait_text("state-text", "open")
    return page


def test_text_comes_back(page: Page, gateway: Gateway) -> None:
    """Text outside ASCII is echoed, counted and timed; then the page closes with a code."""
    page.fill("text", "Grüße, 🌍")
    page.click("send-text")
    page.wait_text("log", "echo after")
    entry = page.text("log").partition("echo after")[0]
    assert "Grüße, 🌍" in entry and "text, 13 B" in entry and "←" in entry
    assert (page.text("sent"), page.text("received")) == ("1", "1")
    assert page.text("latency").endswith(("µs", "ms", "s"))
    page.fill("code", "4321")
    page.fill("reason", "that was all")
    page.click("close")
    page.wait_text("state-text", "closed, 4321")
    assert "4321: that was all" in page.text("log")
    assert page.complaints() == []
    record = gateway.record(route="echo")
    assert record["status"] == 101


def test_binary_and_a_big_message_come_back(page: Page) -> None:
    """Binary stays binary, and 1 MiB comes back to the byte: only an equal echo is timed."""
    page.fill("text", "\x00\x01 bytes")
    page.click("send-binary")
    page.wait_text("log", "echo after")
    assert "00 01 20 62 79 74 65 73" in page.text("log")
    page.click("send-big")
    page.wait("document.getElementById('received').innerText === '2'")
    newest = page.text("log").partition("echo after")[0]
    assert "binary, 1 MiB" in newest and "00 1f 3e" in newest
    page.click("measure")
    page.wait_text("log", "100 echoes")
    assert page.text("received") == "102"
    assert page.complaints() == []


@pytest.mark.skipif(CERTUTIL is None, reason="certutil is not installed")
def test_the_demo_by_https(browser: Browser, start: Starter, certs: Path) -> None:
    """routes/demo-tls.toml with the certificates of `gateway certs`: who comes by http is sent to
    https, the page proposes wss, and the echo works, without a complaint of the browser's."""
    table = (ROOT / "routes" / "demo-tls.toml").read_text().replace("../certs/", f"{certs}/")
    assert table.count("127.0.0.1:8443") == table.count("127.0.0.1:8080") == 1
    table = table.replace("127.0.0.1:8443", "127.0.0.1:0").replace("127.0.0.1:8080", "127.0.0.1:0")
    gateway = start(table + '[gateway]\nengine = "{engine}"\nlog = "json"\nworkers = 1\n')
    page = browser.open(f"https://localhost:{gateway.port}/")
    assert page.run("isSecureContext")
    assert page.run("document.getElementById('url').value") == (
        f"wss://localhost:{gateway.port}/echo"
    )
    page.click("connect")
    page.wait_text("state-text", "open")
    page.fill("text", "by TLS")
    page.click("send-text")
    page.wait_text("log", "echo after")
    page.click("send-big")
    page.wait("document.getElementById('received').innerText === '2'")
    page.click("close")
    page.wait_text("state-text", "closed, 1000")
    assert page.complaints() == []
    record = gateway.record(route="echo")
    assert (record["tls"], record["sni"], record["cause"]) == ("TLSv1.3", "localhost", "closed")


def test_a_refused_upgrade_is_shown(browser: Browser, gateway: Gateway) -> None:
    """Where no route is, the page says that there is no connection, and can be used again."""
    page = browser.open(gateway.url("/", "http"))
    page.fill("url", gateway.url("/nowhere"))
    page.click("connect")
    page.wait_text("state-text", "no connection")
    page.fill("url", gateway.url("/echo"))
    page.click("connect")
    page.wait_text("state-text", "open")
