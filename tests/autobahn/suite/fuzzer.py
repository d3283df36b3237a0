"""Autobahn's fuzzing client and fuzzing server, several cases at a time, results as JSON.

    fuzzer.py list PATTERNS           [[name, heavy], ...] in the order in which they are run
    fuzzer.py client URL NAMES OUT    writes OUT when all have run
    fuzzer.py server NAMES OUT        prints "port N"; writes OUT at every /updateReports

PATTERNS as in Autobahn ("*", "1.*", "12.1.3"), NAMES without stars; separated by commas.
`--alone` runs one case at a time. AUTOBAHN_MESSAGES in the environment: the messages in each case
of 12 and 13 (Autobahn's own number is 1000).
"""
# Autobahn and Twisted have no types, and live in another environment than the one that is checked.
# mypy: disable-error-code="import-not-found,misc,import-untyped"
# ruff: noqa: N802 (the names of the methods are Autobahn's)

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketServerFactory,
    connectWS,
)
from autobahntestsuite import fuzzing
from autobahntestsuite.case import (
    CaseBasename,
    CaseCategories,
    Cases,
    CaseSetname,
    CaseSubCategories,
)
from autobahntestsuite.caseset import CaseSet
from twisted.internet import reactor

Result = dict[str, Any]
Names = list[str]

fuzzing.print = lambda *_, **__: None   # one line for each case, which nobody reads

SET = CaseSet(CaseSetname, CaseBasename, Cases, CaseCategories, CaseSubCategories)
HEAVY_GROUPS = ("9", "10", "12", "13")
LIGHT_AT_ONCE = 20
HEAVY_AT_ONCE = 2
LIGHT_LIMIT = 20.0                     # seconds for one case
HEAVY_LIMIT = 100.0
FAILED: Result = {
    "behavior": "FAILED",
    "behaviorClose": "FAILED",
    "remoteCloseCode": None,
    "resultClose": "",
    "duration": 0,
}


def heavy(name: str) -> bool:
    """True for the cases of many or large messages."""
    return name.split(".", maxsplit=1)[0] in HEAVY_GROUPS


def choose(patterns: str) -> Names:
    """The names that the patterns mean: light ones first, each kind in Autobahn's order."""
    known = set(SET.CasesById)
    chosen: set[str] = set()
    for pattern in patterns.split(","):
        if pattern.endswith("*"):
            chosen |= {name for name in known if name.startswith(pattern[:-1])}
        elif pattern in known:
            chosen.add(pattern)
        else:
            sys.exit(f"no such case: {pattern}")
    return sorted(chosen, key=lambda name: (heavy(name), [int(part) for part in name.split(".")]))


def short(result: Result) -> Result:
    """What of a result is compared, or helps to understand it."""
    keys = "behavior behaviorClose remoteCloseCode result resultClose duration wasNotCleanReason"
    return {key: result[key] for key in keys.split()}


def write(path: str, value: object) -> None:
    """The whole file or none of it."""
    part = Path(path + ".part")
    part.write_text(json.dumps(value, indent=1), encoding="utf-8")
    part.replace(path)


class OneCase(fuzzing.FuzzingClientFactory):
    """A connection that runs one case, and then calls `done`."""

    def __init__(self, url: str, name: str, done: Callable[[str, Result], None]) -> None:
        WebSocketClientFactory.__init__(self)
        self.logOctets = self.logFrames = True
        self.CaseSet = SET
        self.specExcludeAgentCases: Names = []
        self.name, self.done, self.agent = name, done, "upstream"
        self.currentCaseIndex = SET.CasesIndices[name]
        self.result: Result | None = None
        self.setSessionParameters(url=url, useragent="AutobahnTestSuite")
        self.setProtocolOptions(failByDrop=False)
        limit = HEAVY_LIMIT if heavy(name) else LIGHT_LIMIT
        self.guard = reactor.callLater(limit, self.give_up)

    def buildProtocol(self, address: object) -> object:
        self.connection = super().buildProtocol(address)
        return self.connection

    def give_up(self) -> None:
        self.connection.transport.abortConnection()

    def logCase(self, result: Result) -> None:
        self.result = short(result)

    def clientConnectionLost(self, connector: object, reason: Any) -> None:
        reactor.callLater(0, self.finish, str(reason.value))

    def clientConnectionFailed(self, connector: object, reason: Any) -> None:
        reactor.callLater(0, self.finish, f"no connection: {reason.getErrorMessage()}")

    def finish(self, why: str) -> None:
        if self.guard.active():
            self.guard.cancel()
        self.done(self.name, self.result or {**FAILED, "result": why})


class Run:
    """All cases against one URL: the light ones many at a time, then the heavy ones."""

    def __init__(self, url: str, names: Names, out: str, alone: bool) -> None:
        self.url, self.out = url, out
        self.phases = [
            ([name for name in names if not heavy(name)], 1 if alone else LIGHT_AT_ONCE),
            ([name for name in names if heavy(name)], 1 if alone else HEAVY_AT_ONCE),
        ]
        self.results: dict[str, Result] = {}
        self.running = 0
        self.next_phase()

    def next_phase(self) -> None:
        if self.phases:
            self.waiting, self.at_once = self.phases.pop(0)
            self.start_some()
        else:
            write(self.out, self.results)
            reactor.stop()

    def start_some(self) -> None:
        while self.waiting and self.running < self.at_once:
            self.running += 1
            connectWS(OneCase(self.url, self.waiting.pop(0), self.done))
        if not self.waiting and not self.running:
            self.next_phase()

    def done(self, name: str, result: Result) -> None:
        self.results[name] = result
        self.running -= 1
        self.start_some()


class AnyPrefix(fuzzing.FuzzingServerProtocol):
    """The commands under any path, so that a proxy may put the server where it likes."""

    def onConnect(self, request: Any) -> object:
        request.path = "/" + request.path.rstrip("/").rsplit("/", 1)[-1]
        return super().onConnect(request)


class Server(fuzzing.FuzzingServerFactory):
    """The fuzzing server; it keeps the results of each agent by the case's name."""

    protocol = AnyPrefix

    def __init__(self, names: Names, out: str) -> None:
        WebSocketServerFactory.__init__(self)
        fuzzing.FuzzingFactory.__init__(self, "/nowhere")
        self.logOctets = self.logFrames = True
        self.setSessionParameters(url="ws://127.0.0.1", server="AutobahnTestSuite")
        self.externalPort = None       # the Host field may name any port
        self.setProtocolOptions(failByDrop=False)
        self.CaseSet, self.specCases = SET, names
        self.specExcludeAgentCases: Names = []
        self.out = out

    def createReports(self, *ignored: object) -> None:
        found = {
            agent: {name: short(result) for name, result in cases.items()}
            for agent, cases in self.agents.items()
        }
        write(self.out, found)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("mode", choices=["list", "client", "server"])
    parser.add_argument("words", nargs="+")
    given = parser.parse_args()
    if given.mode == "list":
        print(json.dumps([[name, heavy(name)] for name in choose(given.words[0])]))
        return
    if given.mode == "client":
        url, names, out = given.words
        reactor.callWhenRunning(Run, url, choose(names), out, given.alone)
    else:
        names, out = given.words
        port = reactor.listenTCP(0, Server(choose(names), out), interface="127.0.0.1")
        print("port", port.getHost().port, flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
