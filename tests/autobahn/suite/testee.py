"""What is fuzzed: Autobahn's own echo server, or its echo client. Both pass every case.

    testee.py server                             prints "port N"
    testee.py client URL AGENT LIGHT INDICES     runs these cases of the fuzzing server at URL

INDICES are places in the server's list, from 1, separated by commas; those up to LIGHT run many at
a time. `--alone` runs one at a time. At the end the server is asked for its report.
"""
# Autobahn and Twisted have no types, and live in another environment than the one that is checked.
# mypy: disable-error-code="import-not-found,misc,import-untyped"
# ruff: noqa: N802, N803, N815 (the names of methods and arguments are Autobahn's)

import argparse
from collections.abc import Callable

from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
    connectWS,
)
from autobahn.websocket.compress import (
    PerMessageDeflateOffer,
    PerMessageDeflateOfferAccept,
    PerMessageDeflateResponse,
    PerMessageDeflateResponseAccept,
)
from twisted.internet import reactor

SECONDS_PER_CASE = 100
LIGHT_AT_ONCE = 20
HEAVY_AT_ONCE = 2


class EchoServer(WebSocketServerProtocol):
    """Sends every message back."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.sendMessage(payload, isBinary)

    def dropConnection(self, abort: bool = False) -> None:
        """FIN, never RST: that may overtake the Close."""
        super().dropConnection(abort=False)


def accept_offer(offers: list[object]) -> object:
    """Accept the first offer of permessage-deflate, whatever its parameters."""
    for offer in offers:
        if isinstance(offer, PerMessageDeflateOffer):
            return PerMessageDeflateOfferAccept(offer)
    return None


def accept_response(response: object) -> object:
    """Accept a server's permessage-deflate, whatever its parameters."""
    if isinstance(response, PerMessageDeflateResponse):
        return PerMessageDeflateResponseAccept(response)
    return None


def serve() -> None:
    """Listen on a free port and print it."""
    factory = WebSocketServerFactory("ws://127.0.0.1", server="AutobahnPython")
    factory.protocol = EchoServer
    factory.externalPort = None        # the Host field may name any port
    factory.setProtocolOptions(failByDrop=False, perMessageCompressionAccept=accept_offer)
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    print("port", port.getHost().port, flush=True)


class EchoClient(WebSocketClientProtocol):
    """Sends every message back."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.sendMessage(payload, isBinary)


class Dial(WebSocketClientFactory):
    """One connection; `done` is called when it is over, however."""

    protocol = EchoClient

    def __init__(self, url: str, done: Callable[[], None]) -> None:
        WebSocketClientFactory.__init__(self, url)
        self.done = done
        self.setProtocolOptions(
            failByDrop=False,
            perMessageCompressionOffers=[PerMessageDeflateOffer()],
            perMessageCompressionAccept=accept_response,
        )
        self.guard = reactor.callLater(SECONDS_PER_CASE, self.give_up)
        connectWS(self)

    def buildProtocol(self, address: object) -> object:
        self.link = super().buildProtocol(address)
        return self.link

    def give_up(self) -> None:
        self.link.transport.abortConnection()

    def clientConnectionLost(self, connector: object, reason: object) -> None:
        if self.guard.active():
            self.guard.cancel()
        reactor.callLater(0, self.done)

    clientConnectionFailed = clientConnectionLost


class Client:
    """Light cases many at a time, then the heavy ones."""

    def __init__(self, url: str, agent: str, light: int, indices: list[int], alone: bool) -> None:
        self.url, self.agent = url.rstrip("/"), agent
        self.light, self.waiting, self.alone = light, indices, alone
        self.running = 0
        self.start_some()

    def start_some(self) -> None:
        while self.waiting:
            at_once = LIGHT_AT_ONCE if self.waiting[0] <= self.light else HEAVY_AT_ONCE
            if self.running >= (1 if self.alone else at_once):
                return
            self.running += 1
            case = self.waiting.pop(0)
            Dial(f"{self.url}/runCase?case={case}&agent={self.agent}", self.ended)
        if not self.running:
            Dial(f"{self.url}/updateReports?agent={self.agent}", reactor.stop)

    def ended(self) -> None:
        self.running -= 1
        self.start_some()


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("mode", choices=["server", "client"])
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    if given.mode == "server":
        serve()
    else:
        url, agent, light, indices = given.words
        cases = [int(index) for index in indices.split(",")]
        reactor.callWhenRunning(Client, url, agent, int(light), cases, given.alone)
    reactor.run()


if __name__ == "__main__":
    main()
