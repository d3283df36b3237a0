"""The program of one worker: `python -m gateway.control.worker_process LINES LANE MEMORY`.

LINES and LANE are the descriptors of its channels (see channel.py), MEMORY that of what all workers
count in (see shared.py). It waits for the first line,
builds what its sessions share, serves until it is told to end, and says how that went.

Laws of this file:

- It reads no table's file, resolves no name and binds nothing: all that comes from the supervisor.
- Only what a worker needs is imported: it has to be quick, since it may replace one that died.
- It ends with 0, or with `EXIT_BUG` and a traceback in the log.
- It drains when its supervisor is gone, and to see that it has to run: one that is stopped then
  (SIGSTOP) would keep the addresses for ever, so the kernel is asked to have it go on.
"""

import importlib.resources
import random
import secrets
import signal
import socket
import sys
import traceback

from gateway.control import channel
from gateway.control.channel import Lines, Message
from gateway.control.choice import make
from gateway.control.counters import Counters
from gateway.control.listening import Bound
from gateway.control.report import Report
from gateway.control.shared import SharedMemory, Slots
from gateway.control.spawning import IGNORED
from gateway.control.swapping import PoolMaker, Swapping
from gateway.control.worker import Worker
from gateway.errors import EngineRefused
from gateway.governor import Governor
from gateway.limits import Limits
from gateway.protocol.desk import Desk
from gateway.routing import RouteTable
from gateway.table import Table, Upstream
from gateway.upstreams import News, Pool

EXIT_BUG = 70                 # EX_SOFTWARE of sysexits.h
PR_SET_PDEATHSIG = 1          # linux/prctl.h


def main() -> None:
    """See the module's docstring."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    _go_on_alone()
    lines = socket.socket(fileno=int(sys.argv[1]))
    lane = socket.socket(fileno=int(sys.argv[2]))
    memory = SharedMemory(int(sys.argv[3]))
    begin, behind = _first(lines)
    if begin is None:
        return                # the supervisor has ended before we were wanted
    table = channel.unpack_table(begin["table"])
    report = Report(style=table.gateway.log, log_query=table.gateway.log_query)
    try:
        _serve(begin, behind, table, report, lines, lane, memory)
    except Exception:  # noqa: BLE001 - a bug of ours: it is said, and the supervisor goes on
        report.error(traceback.format_exc(), worker=begin["worker"])
        sys.exit(EXIT_BUG)
    finally:
        report.close()


def _go_on_alone() -> None:
    """Have the kernel send SIGCONT when our parent ends, which is its main thread (prctl(2)). To
    one that runs it is nothing. Where Python has no ctypes, who keeps an address is only named."""
    try:
        import ctypes  # noqa: PLC0415 - Pythons are built without it
    except ImportError:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGCONT), 0, 0, 0)


def _first(lines: socket.socket) -> tuple[Message | None, list[Message]]:
    """The first line, and those that came with it. None if the supervisor is gone."""
    reading = Lines()
    while True:
        data = lines.recv(channel.RECEIVE_MAX)
        if not data:
            return None, []
        messages = reading.feed(data)
        if messages:
            assert messages[0]["do"] == "begin"
            assert reading.is_empty, "the supervisor sends whole lines and waits for an answer"
            return messages[0], messages[1:]


def _serve(
    begin: Message, behind: list[Message], table: Table, report: Report,
    lines: socket.socket, lane: socket.socket, memory: SharedMemory,
) -> None:
    """Serve until the end."""
    try:
        engine = make(begin["engine"], begin["form"])
    except EngineRefused as error:
        refused = {"is": "refused", "error": str(error), "code": error.exit_code}
        lines.sendall(channel.encode(refused))
        return
    sockets = channel.receive_sockets(lane)
    bound = {}
    for listener, said in zip(table.listeners, begin["listeners"], strict=True):
        index = said["index"]
        address = channel.unpack_address(said["address"])
        bound[index] = Bound(listener, sockets.pop(index), address)
    counters = Counters(memory, begin["worker"], Slots.from_json(begin["slots"]))
    chance = random.Random()  # noqa: S311 - balances load, keeps no secret
    news: list[News] = []

    def make_pool(upstream: Upstream) -> Pool:
        return Pool(upstream, chance, news, counters)

    desk = desk_of(table, channel.unpack_endpoints(table, begin["endpoints"]),
                   begin["max_sessions"], counters, make_pool, news)
    worker = Worker(
        engine, desk, report, bound, lines, number=begin["worker"], counters=counters
    )
    swapping = Swapping(worker, desk, report, lane, counters, make_pool, worker.orders.say)
    worker.orders.know(swapping.orders)
    worker.run(behind)


def desk_of(
    table: Table, endpoints: channel.Endpoints, max_sessions: int, counters: Counters,
    make_pool: PoolMaker, news: list[News],
) -> Desk:
    """What the sessions of one worker share; by `counters` also with those of others."""
    pools = {name: make_pool(upstream) for name, upstream in table.upstreams.items()}
    for name, found in endpoints.items():
        pools[name].set_endpoints(found)
    page = importlib.resources.files("gateway.protocol").joinpath("page.html").read_bytes()
    return Desk(
        table=table,
        routes=RouteTable(table.routes),
        pools=pools,
        limits=Limits(max_sessions, counters),
        governor=Governor(counters),
        random_bytes=secrets.token_bytes,
        page=page,
        news=news,
    )


if __name__ == "__main__":
    main()
