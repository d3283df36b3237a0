"""What the workers obey: the table, its sockets, its addresses. One frozen whole, with a version.

A reload, and new addresses of a name, make new terms of the old; nobody changes a part of them.
"""

from dataclasses import dataclass

from gateway.control.board import Board
from gateway.control.channel import Endpoints
from gateway.control.cpus import workers_auto
from gateway.control.listening import Bound
from gateway.control.shared import Slots, endpoint_name
from gateway.table import Table


@dataclass(frozen=True, slots=True)
class Terms:
    """`bound` are the listening sockets in the order of the table's listeners, by numbers that no
    other ever has; `endpoints` the addresses of its upstreams."""

    table: Table
    bound: dict[int, Bound]
    endpoints: Endpoints
    version: int = 0

    def slots(self, board: Board) -> Slots:
        """Where its routes and endpoints are counted; names that had cells keep them."""
        return board.slots(
            (route.name for route in self.table.routes),
            (
                endpoint_name(upstream, str(address))
                for upstream, found in self.endpoints.items() for _, address in found
            ),
        )

    @property
    def workers(self) -> int:
        """How many workers there should be."""
        return self.table.gateway.workers or workers_auto()
