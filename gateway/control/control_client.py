"""The commands that speak to a running gateway: ask, wait for the answer, tell it in words.

Without `--control` the socket is looked for in the usual places, and the first that somebody
answers on is it. Nothing here imports what serving needs.

Never: print what came over the socket unescaped. A session's path is what a stranger wrote.
"""

import json
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from gateway.control.control_words import ANSWER_MAX, Message, encode, usual_places
from gateway.errors import NoAnswer

PATIENCE = 60.0               # seconds for an answer; a reload may wait for a name server


class Line:
    """A connection to a running gateway. Use it in `with`."""

    def __init__(self, place: Path | None) -> None:
        """Connect to the socket at `place`, or in the usual places. Raises `NoAnswer`."""
        self._socket, self.place = _connect([place] if place else usual_places())
        self._got = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, **request: object) -> Message:
        """Send a request, and wait for its answer. Raises `NoAnswer`."""
        try:
            self._socket.sendall(encode(dict(request)))
        except OSError as error:
            raise NoAnswer(f"the gateway at {self.place} has ended meanwhile") from error
        return self.wait()

    def wait(self, seconds: float | None = PATIENCE) -> Message:
        """The next answer, which may take so long, or for ever. Raises `NoAnswer`."""
        self._socket.settimeout(seconds)
        pieces = [self._got]
        size = len(self._got)
        while b"\n" not in pieces[-1]:
            piece = self._read()
            size += len(piece)
            if not piece or size > ANSWER_MAX:
                raise NoAnswer(f"the gateway at {self.place} has ended meanwhile")
            pieces.append(piece)
        line, _, self._got = b"".join(pieces).partition(b"\n")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def _read(self) -> bytes:
        try:
            return self._socket.recv(65536)
        except TimeoutError as error:
            raise NoAnswer(
                f"the gateway at {self.place} does not answer; its log may say why"
            ) from error
        except OSError:
            return b""


def _connect(places: Sequence[Path]) -> tuple[socket.socket, Path]:
    tried = []
    for place in places:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.settimeout(PATIENCE)
        try:
            connected.connect(str(place))
            return connected, place
        except OSError as error:
            connected.close()
            why = (error.strerror or str(error)).lower()
            tried.append(f"  {place}: {why}")
    raise NoAnswer("\n".join([
        "no gateway answers; name its control socket with --control PATH, it stands in the",
        "line with which it starts. Tried:", *tried,
    ]))


# --- Answers in words -------------------------------------------------------------------------


def table_of(rows: Iterable[Sequence[object]], heads: Sequence[str]) -> str:
    """Lines of columns; numbers stand on the right."""
    cells = [[_shown(cell) for cell in row] for row in rows]
    right = [bool(cells) and all(_is_number(row[n]) for row in cells) for n in range(len(heads))]
    widths = [max(len(row[n]) for row in [heads, *cells]) for n in range(len(heads))]

    def line(row: Sequence[str]) -> str:
        placed = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        return "  ".join(placed).rstrip() + "\n"

    return line(heads) + "".join(line(row) for row in cells)


def _shown(cell: object) -> str:
    """A cell's text, which no terminal takes for an order."""
    text = f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text) or "-"


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(",", "").replace(".", "").isdigit()


def duration(seconds: float) -> str:
    """A time as a person says it: the two largest units."""
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{whole}s"
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    parts: list[str] = []
    for unit, size in units:
        count, whole = divmod(whole, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def status_text(status: Message) -> str:
    """What `gateway status` prints."""
    state = "draining" if status["draining"] else "ready" if status["ready"] else "not ready"
    sessions = sum(one["sessions"] for one in status["workers"])
    lines = [
        f"gateway {status['version']}, {status['engine']}, pid {status['pid']}, {state}",
        f"up         {duration(status['uptime'])}, {_count(sessions, 'session')}",
        f"table      {status['table']}",
        f"listening  {', '.join(status['listening'])}",
        f"reloads    {status['reloads']['done']} done, {status['reloads']['failed']} failed",
    ]
    before = status.get("predecessor")
    if before:
        count = "sessions that cannot be counted" if before["sessions"] is None else (
            _count(before["sessions"], "session")
        )
        lines.append(f"replaced   pid {before['pid']}, which drains: {count}")
    error = status["reloads"]["error"]
    if error:
        again = ", and is tried again" if status["reloads"].get("retried") else ""
        lines += [f"  the latest failed{again}: {_shown(line)}" for line in error.splitlines()]
    workers = [
        [one["worker"], str(one["pid"]), one["state"], one["connections"], one["sessions"],
         f"{one['lag_ms']:.1f}", one["restarts"]]
        for one in status["workers"]
    ]
    heads = ["WORKER", "PID", "STATE", "CONNECTIONS", "SESSIONS", "LAG MS", "RESTARTS"]
    routes = [[one["name"], one["sessions"], one["total"]] for one in status["routes"]]
    return "\n".join([
        *lines, "", table_of(workers, heads), table_of(routes, ["ROUTE", "SESSIONS", "TOTAL"]),
    ])


def sessions_text(answer: Message) -> str:
    """What `gateway sessions` prints."""
    rows = [
        [one["session"], one["worker"], one["route"], one["client"], one["endpoint"],
         one["phase"], duration(one["age"])]
        for one in answer["sessions"]
    ]
    heads = ["SESSION", "WORKER", "ROUTE", "CLIENT", "ENDPOINT", "STATE", "AGE"]
    shown = f"{len(rows):,} of {answer['total']:,} sessions"
    if answer["silent"]:
        shown += f"; these workers did not answer: {', '.join(map(str, answer['silent']))}"
    return table_of(rows, heads) + shown + "\n"


def drain_text(answer: Message) -> str:
    """What `gateway drain` prints."""
    if answer["is"] == "ended":
        return f"ended, {_count(answer['cut'], 'session')} cut\n"
    return f"draining, {_count(answer['sessions'], 'session')} left\n"


def plan_text(plan: Message) -> str:
    """What `gateway reload` prints, before (`plan`) or after it is done (`reloaded`)."""
    lines = [f"warning: {warning}" for warning in plan["warnings"]]
    for one in plan["routes"]:
        line = f"route {one['name']}: {one['change']}"
        if one["change"] != "added" and one["sessions"]:
            terms = (f"drained over {duration(one['drain'])}" if one["drain"]
                     else "on their old terms until they end")
            line += f"; {_count(one['sessions'], 'session')}, {terms}"
        lines.append(line)
    for change in ("added", "removed", "changed"):
        lines += [f"listener {address}: {change}" for address in plan[f"listeners_{change}"]]
    lines += [f"{setting}: changed" for setting in plan["settings"]]
    if plan["refusals"]:
        return "\n".join([*lines, "refused:", *plan["refusals"]]) + "\n"
    if plan["is"] == "plan":
        lines.append("nothing is done yet; `gateway reload` does it" if lines else
                     "nothing differs from the table that runs")
    else:
        lines.append("reloaded" if lines else "reloaded; nothing differs")
    lines[-1] += (
        f" ({plan['sessions_touched']:,} of {_count(plan['sessions'], 'session')} touched, "
        f"{plan['sessions_drained']:,} to drain)"
    )
    return "\n".join(lines) + "\n"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")
