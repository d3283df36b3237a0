"""The worker's end of the channel: what the supervisor says is done, and answered.

Laws of this file:

- An order is done when its event is delivered, like all others; the lines of one `Received` one
  after another.
- What nobody here knows is a bug, since both ends are one program.
- That the supervisor is gone is told once.
"""

import socket
from collections.abc import Callable, Iterable

from gateway import events
from gateway.control.channel import Lines, Message, encode
from gateway.engine.contract import Engine
from gateway.events import Event

Order = Callable[[Message, float], Message | None]   # gives the answer, where there is one


class Orders:
    """Hears the supervisor on `link`, which is the engine's from `start` on.

    `known` has what is done for each word; `lost` is called when the supervisor is gone.
    """

    def __init__(
        self,
        engine: Engine,
        channel: socket.socket,
        known: dict[str, Order],
        lost: Callable[[float], None],
    ) -> None:
        self.link = -1
        self._engine = engine
        self._channel = channel
        self._known = known
        self._lost = lost
        self._alone = False
        self._lines = Lines()

    def know(self, more: dict[str, Order]) -> None:
        """Obey these words, too."""
        self._known.update(more)

    def start(self) -> None:
        """Listen. Orders are done from the next batch on."""
        self.link = self._engine.adopt(self._channel)
        self._engine.read(self.link)

    def handle(self, event: Event) -> None:
        """An event of the link."""
        if isinstance(event, events.Received):
            self.obey(self._lines.feed(event.data), event.at)
        elif isinstance(event, events.Finished | events.Closed) and not self._alone:
            self._alone = True
            self._lost(event.at)

    def obey(self, messages: Iterable[Message], at: float) -> None:
        """Do what these say, in their order."""
        for message in messages:
            answer = self._known[message["do"]](message, at)
            if answer is not None:
                self.say(answer | {"id": message["id"]})

    def say(self, message: Message) -> None:
        """Say something to the supervisor; to nobody, where it is gone."""
        if not self._alone:
            self._engine.send(self.link, encode(message))
