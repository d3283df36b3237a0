"""Which endpoint of an upstream gets the next session.

A `Pool` is one upstream's endpoints with their live counts and their health. It is asked with
`pick` and told with `begin`, `connected`, `failed` and `ended`, which are `Endpoint`'s methods.

Laws of this file:

- Pure: the clock comes in as `now`, chance as a `random.Random`. Same seed, same choices.
- What the other workers have on an endpoint counts too, where a balance goes by what is live. It is
  asked for at most each `REFRESH` seconds: a burst in many workers at once may pick alike for
  that long.
- What is connecting counts as live from `begin` on, so that a burst spreads before the first
  answer is there. Each `begin` is followed by exactly one `ended`, which is asserted.
- An endpoint whose connect failed rests for a second, for each further failure twice as long as
  before, up to thirty. Resting ones are passed over while another can be had; where all rest,
  one of them is tried all the same, since a guess is better than a certain refusal.
- Weight 0 gets nothing. It never resolves a name and never connects.
- That an endpoint begins to rest, and that it works again, is news, once each. It is put into a
  list, which somebody with a log reads.
"""

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import blake2b
from math import log
from typing import Protocol

from gateway.events import Address
from gateway.table import EndpointEntry, Upstream

REST_MIN = 1.0    # seconds that an endpoint rests after its first failed connect
REST_MAX = 30.0   # no rest is longer: a service that came back is found within half a minute

REFRESH = 0.05    # seconds between two looks at what the other workers have


class Elsewhere(Protocol):
    """The other workers: what they are told of this one's endpoints, and what they have."""

    def begun_on(self, upstream: str, endpoint: str, /) -> None:
        """This worker has one session more on this endpoint."""

    def ended_on(self, upstream: str, endpoint: str, /) -> None:
        """This worker has one session less on this endpoint."""

    def on_endpoint(self, upstream: str, endpoint: str, /) -> int:
        """What all other workers have on it."""


@dataclass(frozen=True, slots=True)
class News:
    """An endpoint began to rest for `rest` seconds because of `error`; or works again ("", 0)."""

    upstream: str
    endpoint: str
    error: str = ""
    rest: float = 0.0


class Endpoint:
    """One address of an upstream: its weight, what is live on it, and whether it rests."""

    __slots__ = ("active", "address", "entry", "far", "name", "rest", "rests_until", "turn",
                 "upstream", "weight", "_elsewhere", "_hash", "_news")

    def __init__(
        self, entry: EndpointEntry, address: Address, weight: int, upstream: str = "",
        news: list[News] | None = None, elsewhere: Elsewhere | None = None,
    ) -> None:
        self.upstream = upstream        # its name
        self._news = [] if news is None else news
        self._elsewhere = elsewhere
        self.entry = entry              # as the table has it: for `send_host` and messages
        self.address = address          # where to connect
        self.name = str(address)        # for records
        self.weight = weight
        self.active = 0                 # sessions of this worker that connect or are connected
        self.far = 0                    # of the other workers, as far as is known
        self.rest = 0.0                 # seconds of the latest rest; 0 after a success
        self.rests_until = 0.0          # passed over before this time
        self.turn = 0                   # the credit of smooth round-robin
        # The address, hashed once; no address holds a NUL, so no two (address, key) run together.
        self._hash = blake2b(self.name.encode() + b"\0", digest_size=8)

    def __repr__(self) -> str:
        return f"<Endpoint {self.name} weight={self.weight} active={self.active}>"

    def begin(self) -> None:
        """A session begins to connect here. Exactly one `ended` must follow."""
        self.active += 1
        if self._elsewhere is not None:
            self._elsewhere.begun_on(self.upstream, self.name)

    def connected(self) -> None:
        """The connect succeeded: whatever was held against this endpoint is forgotten."""
        if self.rest:
            self._news.append(News(self.upstream, self.name))
        self.rest = 0.0
        self.rests_until = 0.0

    def failed(self, now: float, error: str = "failed") -> None:
        """The connect failed or took too long: rest. `ended` must follow all the same.

        Connects that were under way together fail together. They are one failure: only one after
        the rest is over makes the next rest longer.
        """
        if now < self.rests_until:
            return
        if not self.rest:
            self._news.append(News(self.upstream, self.name, error, REST_MIN))
        self.rest = min(self.rest * 2, REST_MAX) if self.rest else REST_MIN
        self.rests_until = now + self.rest

    def ended(self) -> None:
        """What `begin` began is over, however it ended."""
        assert self.active > 0, f"{self.name} was ended more often than begun"
        self.active -= 1
        if self._elsewhere is not None:
            self._elsewhere.ended_on(self.upstream, self.name)

    def look(self) -> None:
        """See what the other workers have here."""
        if self._elsewhere is not None:
            self.far = self._elsewhere.on_endpoint(self.upstream, self.name)

    @property
    def load(self) -> float:
        """Live sessions of all workers, for each unit of weight."""
        return (self.active + self.far) / self.weight

    def score(self, key: bytes) -> float:
        """This endpoint's weighted rendezvous score for `key`; the highest of a pool wins.

        -weight / ln(u), with u uniform in (0, 1) from a hash of address and key (Schindelhauer
        and Schomaker, 2005): each endpoint wins in proportion to its weight, and a key moves only
        when its own winner goes or a newcomer beats it. blake2b has no seed here, so all
        processes agree, also after a restart.
        """
        digest = self._hash.copy()
        digest.update(key)
        drawn = int.from_bytes(digest.digest(), "big") >> 12  # 52 bits: u is exact, never 0 or 1
        return -self.weight / log((drawn + 0.5) / (1 << 52))


@dataclass(slots=True)
class _Sum:
    """What the entries of a table say of one address together."""

    entry: EndpointEntry
    weight: int


class Pool:
    """The endpoints of one upstream. Empty until `set_endpoints`. `news` may be many pools'."""

    def __init__(
        self, upstream: Upstream, random: random.Random, news: list[News] | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.upstream = upstream
        self.news: list[News] = [] if news is None else news
        self.endpoints: list[Endpoint] = []
        self._random = random
        self._elsewhere = elsewhere
        self._looked_at = -REFRESH      # when the other workers were looked at
        addresses = upstream.source_addresses
        self._sources = {                # of IPv6, or not
            is_v6: tuple(one for one in addresses if (":" in one) is is_v6)
            for is_v6 in (False, True)
        }
        # So that workers which start together do not go round in step.
        self._source_turn = self._random.randrange(len(addresses)) if addresses else 0
        balances: dict[str, Callable[[list[Endpoint]], Endpoint] | None] = {
            "round-robin": self._round_robin,
            "least-connections": self._least_connections,
            "random-two": self._random_two,
            "hash": None,               # the only one that needs the key: see `pick`
        }
        self._balance = balances[upstream.balance]

    def set_endpoints(self, resolved: list[tuple[EndpointEntry, Address]]) -> None:
        """Replace the endpoints by these; each address has its entry's weight.

        An address that was there keeps its counts and its health. One that is named twice is one
        endpoint with the sum of the weights. Sessions on an address that went keep its `Endpoint`
        and end it as ever.
        """
        sums: dict[Address, _Sum] = {}
        for entry, address in resolved:
            if address in sums:
                sums[address].weight += entry.weight
            else:
                sums[address] = _Sum(entry, entry.weight)
        before = {endpoint.address: endpoint for endpoint in self.endpoints}
        self.endpoints = []
        for address, total in sums.items():
            endpoint = before.get(address)
            if endpoint is None:
                endpoint = Endpoint(
                    total.entry, address, total.weight, self.upstream.name, self.news,
                    self._elsewhere,
                )
            endpoint.entry, endpoint.weight = total.entry, total.weight
            self.endpoints.append(endpoint)

    def pick(self, key: bytes, now: float, tried: Collection[Endpoint] = ()) -> Endpoint | None:
        """The endpoint for the next session, or None where there is none but those in `tried`.

        `key` is what `balance = "hash"` goes by; the others ignore it. The caller says `begin`
        before it connects. Only round-robin remembers that it was asked.
        """
        able = [e for e in self.endpoints if e.weight > 0 and e not in tried]
        awake = [e for e in able if e.rests_until <= now]
        choice = awake or able
        if len(choice) <= 1:
            return choice[0] if choice else None
        if self._balance is None:
            return max(choice, key=lambda endpoint: endpoint.score(key))
        if self._elsewhere is not None and now - self._looked_at >= REFRESH:
            self._looked_at = now
            for endpoint in self.endpoints:
                endpoint.look()
        return self._balance(choice)

    def source(self, endpoint: Endpoint) -> str:
        """Our address to connect to it from, one of its family after another; "" for any."""
        address = endpoint.address
        sources = () if address.is_unix else self._sources[":" in address.host]
        if not sources:
            return ""
        self._source_turn += 1
        return sources[self._source_turn % len(sources)]

    def _round_robin(self, choice: list[Endpoint]) -> Endpoint:
        """Smooth weighted round-robin: weights 5, 1, 1 give a a b a c a a, not five a in a row.

        Each turn credits every endpoint with its weight; the richest is picked and pays for all.
        """
        for endpoint in choice:
            endpoint.turn += endpoint.weight
        best = max(choice, key=lambda endpoint: endpoint.turn)
        best.turn -= sum(endpoint.weight for endpoint in choice)
        return best

    def _least_connections(self, choice: list[Endpoint]) -> Endpoint:
        """The fewest live sessions per weight; among equals chance decides, by weight.

        Not (active + 1) / weight: where sessions are short, and all are free each time, that
        would give everything to the heaviest.
        """
        fewest = min(endpoint.load for endpoint in choice)
        return self._draw([endpoint for endpoint in choice if endpoint.load == fewest])

    def _random_two(self, choice: list[Endpoint]) -> Endpoint:
        """Draw two by weight, take the one with fewer live sessions per weight."""
        first = self._draw(choice)
        second = self._draw([endpoint for endpoint in choice if endpoint is not first])
        return second if second.load < first.load else first

    def _draw(self, choice: list[Endpoint]) -> Endpoint:
        """One at random, in proportion to the weights."""
        if len(choice) == 1:
            return choice[0]
        return self._random.choices(choice, [endpoint.weight for endpoint in choice])[0]
