"""The shared counters in Prometheus' words.

Laws of this file:

- Nothing is counted here. A scrape reads what workers wrote, so that it costs nothing between two
  scrapes, and a worker that died has lost nothing.
- Labels are bounded: routes and endpoints of the table, as many as have cells (shared.py), the
  causes of the house, the statuses it knows and a class for all others. Never an address, a path,
  or anything else that a client wrote.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gateway.control.board import Board, RouteCounts


@dataclass(frozen=True, slots=True)
class Facts:
    """What the supervisor knows besides the counters."""

    version: str
    engine: str
    ready: bool
    workers: dict[int, str] = field(default_factory=dict)    # number to state
    restarts: int = 0
    reloads: dict[str, int] = field(default_factory=dict)    # by outcome
    reloaded: float = 0.0                # when the table that runs was taken, seconds since 1970
    expiries: tuple[tuple[str, str, float], ...] = ()  # place, file, until when, likewise
    predecessor_sessions: int | None = 0  # of the program that drains; None: not known


def exposition(facts: Facts, board: Board, accept: str) -> tuple[bytes, str]:
    """All metrics in the format that `accept` (RFC 9110 12.5.1) asks for, and its media type."""
    registry = CollectorRegistry()
    registry.register(_Snapshot([*_of_supervisor(facts, board), *_of_workers(board)]))
    encoder, media_type = choose_encoder(accept)
    return encoder(registry), media_type


class _Snapshot(Collector):
    """Metrics that are read already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        return self._metrics


def _of_supervisor(facts: Facts, board: Board) -> Iterator[Metric]:
    yield InfoMetricFamily(
        "gateway", "What runs.", {"version": facts.version, "engine": facts.engine}
    )
    yield _gauge("ready", "1 while new sessions are taken.", float(facts.ready))
    workers = GaugeMetricFamily(
        "gateway_worker_up", "1 for each worker that serves, 0 while it starts or drains.",
        labels=["worker"],
    )
    lag = GaugeMetricFamily(
        "gateway_worker_lag_seconds", "How late a worker's loop was at its latest beat.",
        labels=["worker"],
    )
    sessions = GaugeMetricFamily(
        "gateway_worker_sessions", "Sessions that are open in each worker.", labels=["worker"]
    )
    for worker, state in facts.workers.items():
        cells = board.of_worker(worker)
        workers.add_metric([str(worker)], float(state == "serving"))
        lag.add_metric([str(worker)], cells["lag_us"] / 1e6)
        sessions.add_metric([str(worker)], cells["sessions"])
    yield from (workers, lag, sessions)
    yield _counter("worker_restarts", "Workers that were started for one that died.",
                   facts.restarts)
    reloads = CounterMetricFamily(
        "gateway_reloads", "Reloads, by whether the new table was taken.", labels=["outcome"]
    )
    for outcome, count in facts.reloads.items():
        reloads.add_metric([outcome], count)
    yield reloads
    until = GaugeMetricFamily(
        "gateway_certificate_expires_timestamp_seconds",
        "Until when a certificate is good that is shown to clients, or to an upstream.",
        labels=["place", "file"],
    )
    for place, file, seconds in facts.expiries:
        until.add_metric([place, file], seconds)
    yield until
    if facts.predecessor_sessions is not None:
        yield _gauge(
            "predecessor_sessions",
            "Sessions that the program still has which this one has replaced, while it drains.",
            facts.predecessor_sessions,
        )
    yield _gauge("table_loaded_timestamp_seconds", "When the table that runs was taken.",
                 facts.reloaded)


def _of_workers(board: Board) -> Iterator[Metric]:
    totals = board.totals()
    yield _gauge("connections_open", "Clients that are connected.", totals["connections"])
    for name, cell, says in (
        ("connections_accepted", "accepted", "Clients that were accepted."),
        ("connections_refused", "refused", "Clients that were cut at accept: far too many."),
        ("sessions_crashed", "crashed", "Sessions that a bug of the gateway ended."),
        ("sessions_cut", "cut", "Sessions that were cut at the end of a drain."),
        ("log_lines_dropped", "dropped_lines", "Lines that nobody took in time."),
        ("handshakes_delayed", "handshakes_delayed", "Handshakes that waited for their turn."),
        ("handshakes_turned_away", "handshakes_turned_away",
         "Handshakes over the rate of `handshakes`, answered with 503."),
    ):
        yield _counter(name, says, totals[cell])
    yield _labelled(
        "handshakes", "Requests by the status of their answer; 101 is a session.", "status",
        board.statuses(),
    )
    yield _labelled(
        "bytes", "Bytes of frames; of live sessions as of the latest look.", "direction",
        {"up": totals["bytes_up"], "down": totals["bytes_down"]},
    )
    yield _labelled(
        "messages", "Messages; of live sessions as of the latest look.", "direction",
        {"up": totals["messages_up"], "down": totals["messages_down"]},
    )
    yield _labelled(
        "carried_bytes", "Bytes by how they were carried; likewise.", "mode",
        {"copied": totals["bytes_copied"], "spliced": totals["bytes_spliced"]},
    )
    trips = SummaryMetricFamily(
        "gateway_round_trip_seconds", "The latest heartbeat's round trip of each ended session.",
        labels=["side"],
    )
    for side in ("client", "upstream"):
        trips.add_metric([side], totals[f"round_trips_{side}"],
                         totals[f"round_trip_{side}_us"] / 1e6)
    yield trips
    yield SummaryMetricFamily(
        "gateway_loop_lag_seconds", "How late loops were at their beats, one a second.",
        count_value=totals["beats"], sum_value=totals["lag_sum_us"] / 1e6,
    )
    yield from _of_tls(board, totals)
    yield from _of_routes(board.routes())
    endpoints = GaugeMetricFamily(
        "gateway_endpoint_sessions", "Sessions that are connected or connecting to an endpoint.",
        labels=["upstream", "endpoint"],
    )
    for name, count in board.endpoints().items():
        upstream, _, address = name.partition(" ")
        endpoints.add_metric([upstream, address], count)
    yield endpoints


def _of_tls(board: Board, totals: dict[str, int]) -> Iterator[Metric]:
    yield _labelled(
        "tls_handshakes", "TLS handshakes with clients that succeeded.", "kind",
        {"full": totals["tls_full"], "resumed": totals["tls_resumed"]},
    )
    failed = CounterMetricFamily(
        "gateway_tls_handshakes_failed", "TLS handshakes that came to nothing.",
        labels=["side", "reason"],
    )
    for labels, count in board.handshakes().items():
        failed.add_metric(labels, count)
    yield failed


def _of_routes(routes: dict[str, RouteCounts]) -> Iterator[Metric]:
    live = GaugeMetricFamily("gateway_sessions_open", "Live sessions.", labels=["route"])
    begun = CounterMetricFamily("gateway_sessions", "Clients that got their 101.", labels=["route"])
    refused = CounterMetricFamily(
        "gateway_requests_refused", "Requests of a route that did not become a relay.",
        labels=["route"],
    )
    ended = CounterMetricFamily(
        "gateway_sessions_ended", "Relays that ended, by cause.", labels=["route", "cause"]
    )
    for name, counts in routes.items():
        live.add_metric([name], counts.open)
        begun.add_metric([name], counts.begun)
        refused.add_metric([name], counts.refused)
        for cause, count in counts.ended.items():
            ended.add_metric([name, cause], count)
    return iter((live, begun, refused, ended))


def _gauge(name: str, says: str, value: float) -> Metric:
    return GaugeMetricFamily(f"gateway_{name}", says, value)


def _counter(name: str, says: str, value: int) -> Metric:
    return CounterMetricFamily(f"gateway_{name}", says, value)


def _labelled(name: str, says: str, label: str, values: dict[str, int]) -> Metric:
    metric = CounterMetricFamily(f"gateway_{name}", says, labels=[label])
    for key, value in values.items():
        metric.add_metric([key], value)
    return metric
