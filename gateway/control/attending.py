"""A worker's sessions, for who asks from outside: list them, and end one.

Laws of this file:

- Only sessions that a route has let in are spoken of. A connection that sends its head has no name
  that anybody could have read.
- An answer fits into one line of the channel, however many sessions there are.

Never: a word on a running relay's bytes.
"""

from collections.abc import Callable, Mapping
from functools import partial

from gateway.control.channel import ANSWER_MAX, Message, encode
from gateway.control.orders import Order
from gateway.control.parties import Party
from gateway.events import Command
from gateway.protocol.life import STATE_NAMES
from gateway.protocol.session import Session

Teller = Callable[[Party, Callable[[float], list[Command]], float], None]


class Attending:
    """Obeys the orders about single sessions. `sessions` are the worker's, as they come and go;
    `tell` has one of them do something."""

    def __init__(self, sessions: Mapping[Party, Session], tell: Teller) -> None:
        self._sessions = sessions
        self._tell = tell

    @property
    def orders(self) -> dict[str, Order]:
        """What is done for each word of the supervisor."""
        return {"sessions": self._list, "close": self._close}

    def _list(self, message: Message, at: float) -> Message:
        """The oldest first: sessions are kept in the order in which they came."""
        rows: list[Message] = []
        total = 0
        room = ANSWER_MAX - 1024
        for party, session in self._sessions.items():
            if session.entered is None or message["route"] not in ("", session.entered.name):
                continue
            total += 1
            if len(rows) < message["limit"] and room > 0:
                row = _row(party, session, at)
                room -= len(encode(row))
                if room > 0:
                    rows.append(row)
        return {"is": "sessions", "total": total, "sessions": rows}

    def _close(self, message: Message, at: float) -> Message:
        found = [
            (party, session) for party, session in self._sessions.items()
            if party.name == message["session"] and session.entered is not None
        ]
        for party, session in found:
            dismiss = partial(session.dismiss, code=message["code"], reason=message["reason"])
            self._tell(party, dismiss, at)
        return {"is": "closed", "found": bool(found)}


def _row(party: Party, session: Session, at: float) -> Message:
    record, route = session.record, session.entered
    assert route is not None
    return {
        "session": party.name,
        "route": route.name,
        "client": record.client if record is not None else "",
        "endpoint": session.endpoint.name if session.endpoint is not None else "",
        "phase": STATE_NAMES[session.state],
        "age": round(max(0.0, at - record.started), 3) if record is not None else 0.0,
    }
