"""The gateway's own account of a life, beside what the far ends saw: records, counters, zeros."""

import math
import socket
from collections import defaultdict

from gateway.engine.contract import ACCEPT_RETRY, CLOSE_LIMIT
from gateway.events import Accepted, AccessRecord, LegCounts, Side
from gateway.governor import WAIT_MAX
from simulation.codec import CLOSE, Answer, read_answers
from simulation.ends import Client, RawUpstream, Upstream, is_own_ping
from simulation.heads import accept_key
from simulation.story import GRAIN, Story, View, stories_of
from simulation.watch import hold
from simulation.world import AFTERWARDS, World

CLIENT_GONE = 499
ACCEPTS_FAILED = 5                     # accept(2) fails no more often in a row, see World._invite
LINGER_MIN = 1.0 - GRAIN               # seconds; no close_timeout in here is shorter
LINGER = 5.0                           # seconds; no close_timeout in here is longer


# --- The whole life -----------------------------------------------------------------------------


def check_life(world: World) -> None:
    """Nothing crashed, nothing is left, everything was counted down."""
    engine, desk = world.engine, world.desk
    hold(not world.notes.errors, f"crashed: {''.join(world.notes.errors)}")
    hold(world.worker.counts.crashed == 0, "crashed")
    stats = engine.stats()
    left = (stats.links, stats.relays, stats.listeners, stats.timers, stats.queued)
    hold(left == (0,) * 5, f"zero: links, relays, listeners, timers, queued: {left}")
    hold(world.network.open_descriptors == 0,
         f"zero: {world.network.open_descriptors} descriptors are open")
    _check_cuts(world)
    is_cut_short = bool(world.worker.left)         # CUT_LIMIT was over before all links were
    hold(not is_cut_short or world.kill_at < math.inf or _is_drain_long(world),
         "progress: sessions outlived the drain")
    if not is_cut_short:
        limits = desk.limits
        hold((limits.connections, limits.sessions, limits.entries) == (0, 0, 0),
             f"zero: connections {limits.connections}, sessions {limits.sessions}, "
             f"entries {limits.entries}")
        for name, pool in desk.pools.items():
            for endpoint in pool.endpoints:
                hold(endpoint.active == 0, f"zero: {endpoint.active} sessions on {name}")
        clients = {accepted.link for accepted in world.accepted.values()}
        open_links = clients - engine.ended.keys()
        hold(not open_links, f"closed: links {open_links} never were")
    for trace in engine.traces:
        hold(trace.ended is not None or not trace.is_made or is_cut_short,
             "closed: a relay never ended")


def _check_cuts(world: World) -> None:
    """Once the order to end has arrived, the worker counts as cut whose records say so, and who
    has none."""
    weather = world.network.weather
    ordered = min(world.drain_at, world.kill_at)
    arrived = ordered + 2 * (weather.latency + weather.jitter) + GRAIN
    cut = [record.ended for record in world.notes.records
           if record.cause == "killed" or any(counts.cut for counts in record.counts)]
    left = sum(session.record is not None for session in world.worker.left.values())
    least, most = (left + sum(ended >= since for ended in cut) for since in (arrived, ordered))
    hold(least <= world.worker.counts.cut <= most,
         f"counters: records speak of {least} to {most} sessions that the end has cut, the worker "
         f"of {world.worker.counts.cut}")


def _is_drain_long(world: World) -> bool:
    """The drain ran out: what was left was cut."""
    return world.worker.counts.cut > 0 or world.network.now - AFTERWARDS >= world.drain_at


# --- Records ------------------------------------------------------------------------------------


def check_sessions(world: World) -> None:
    """Each client has the records that it should have, and they say what it saw."""
    records: dict[str, list[AccessRecord]] = defaultdict(list)
    for record in world.notes.records:
        records[record.session].append(record)
    clients = {client.far.address: client for client in world.clients}
    hold(records.keys() <= world.accepted.keys(), "records: of a session that never was")
    relays = {trace.client: trace for trace in world.engine.traces if trace.is_made}
    for number, accepted in world.accepted.items():
        client = clients[accepted.client]
        check_session(world, client, records[number], has_relay=accepted.link in relays)
        check_times(world, accepted, client, records[number])
    for upstream in world.upstreams:
        if isinstance(upstream, Upstream):
            check_handshake(world, upstream)
    check_nobody_is_dropped(world)


def check_times(
    world: World, accepted: Accepted, client: Client, records: list[AccessRecord]
) -> None:
    """No phase before the relay is longer than its timeout, and no link outlives its session."""
    listener = world.desk.table.listeners[0]
    routes = {route.name: route for route in world.desk.table.routes}
    for record in records:
        spent: dict[str, float] = defaultdict(float)
        for phase, seconds in record.phases:
            spent[phase] += seconds
        hold(spent["head"] <= listener.head_timeout + GRAIN, "progress: head_timeout")
        if record.route:
            route = routes[record.route]
            tries = len(world.desk.pools[route.upstream].endpoints)
            hold(spent["wait"] <= WAIT_MAX + GRAIN, "progress: a turn")
            hold(spent["connect"] <= tries * route.connect_timeout + GRAIN,
                 "progress: connect_timeout")
            hold(spent["ask"] <= route.answer_timeout + GRAIN, "progress: answer_timeout")
    closed = world.engine.ended.get(accepted.link)
    if closed is not None and client.greeting.kind == "upgrade" and records:
        longest = records[-1].ended + LINGER + CLOSE_LIMIT + GRAIN
        hold(closed <= longest, f"progress: link {accepted.link} outlived its session")


def check_nobody_is_dropped(world: World) -> None:
    """Who came before the drain was accepted, also where descriptors had run out for a while."""
    weather = world.network.weather
    patience = 2 * (weather.latency + weather.jitter) + ACCEPTS_FAILED * ACCEPT_RETRY + GRAIN
    if max(world.short_until, 0.0) + patience > min(world.drain_at, world.kill_at):
        return
    accepted = {one.client for one in world.accepted.values()}
    for client in world.clients:
        if client.came_at + patience < min(world.drain_at, world.kill_at):
            hold(client.far.address in accepted, f"accept: {client.name} was never accepted")


def check_limits(world: World) -> None:
    """Never more relays at once on a route, or of one client there, than its limits say."""
    stories = stories_of(world)
    for story in stories:
        here = [one for one in stories if one.route is story.route
                and one.trace.began <= story.trace.began < one.ended]
        same = [one for one in here if one.record.client == story.record.client]
        for limit, count in ((story.route.max_sessions, len(here)),
                             (story.route.max_sessions_per_client, len(same))):
            hold(not limit or count <= limit, f"limits: {count} at once, {limit} allowed")


def check_session(
    world: World, client: Client, records: list[AccessRecord], *, has_relay: bool
) -> None:
    """One connection."""
    is_over = not world.worker.left
    exchanges = len(client.greeting.methods)
    name = client.name
    hold(records or not is_over, f"records: {name} has none")
    hold(len(records) <= exchanges + 1, f"records: {name} has {len(records)} of {exchanges}")
    last = [one for one in records if one.cause]
    hold(len(last) == has_relay or not is_over, f"records: {name} has {len(last)} of its relay")
    hold(not last or records[-1] is last[0], f"records: {name} has one behind that of its relay")
    finished = client.far.finished
    answers = read_answers(bytes(client.far.received), client.greeting.methods, finished=finished)
    seen = [answer.status for answer in answers]
    said = [one.status for one in records if one.status not in (None, CLIENT_GONE)]
    hold(seen == said[: len(seen)],
         f"records: {name} saw {seen}, and the records have {said}")
    if client.listens_well and not client.far.was_reset and said and is_over:
        hold(len(seen) == len(said) or has_relay, f"lost: {name} saw {seen} of answers {said}")
    if client.far.was_reset and answers and answers[-1].whole and not has_relay:
        at = client.deeds.get("was reset", math.inf)
        hold(at >= records[-1].ended + LINGER_MIN or world.kill_at <= at or
             client.far.reset_why == "late",
             f"cut: {name} was reset at {at:.3f}, right behind its answer")
    for answer in answers:
        check_answer(client, answer, whole=finished and not client.far.was_reset)
    for one in records:
        check_refusal(world, client, one, answers)


def check_answer(client: Client, answer: Answer, *, whole: bool) -> None:
    """An answer ends where it says, unless it was cut; a 101 answers the key."""
    hold(answer.whole or not whole, f"cut: an answer {answer.status} of {client.name} looks whole "
         "and is not")
    if answer.status == 101 and client.greeting.kind in ("upgrade", "plain"):
        hold(answer.fields[b"sec-websocket-accept"] == accept_key(client.greeting.key),
             f"handshake: {client.name} got another key")


def check_refusal(
    world: World, client: Client, record: AccessRecord, answers: list[Answer]
) -> None:
    """An upstream's refusal arrives whole, or the client sees that it was cut."""
    name = client.name.encode()
    asked = [one for one in world.upstreams
             if isinstance(one, Upstream) and one.path.endswith(b"/" + name)]
    if record.status == CLIENT_GONE:
        hold(client.went_at < math.inf, f"records: {client.name} is said to be gone")
        for one in asked:
            check_is_reset(one)
    if record.detail != "the upstream refused" or not asked or not answers:
        return
    got, reception = answers[-1], asked[-1].reception
    if got.whole and reception.kind.startswith("refuse"):
        hold(got.status == reception.status, "handshake: another status than the upstream's")
        hold(got.body == reception.body, "stream: another body than the upstream's")


def check_is_reset(upstream: Upstream) -> None:
    """The client went before the answer: the attempt ends with RST (but for Unix sockets)."""
    far = upstream.far
    if far.family == socket.AF_UNIX or not upstream.listens_well or upstream.went_at < math.inf:
        return
    hold(far.was_reset, f"cut: {upstream.name} was asked for a client that went, and saw no RST")


def check_handshake(world: World, upstream: Upstream) -> None:
    """What reached an upstream is one sound request of ours, for one client."""
    head = upstream.request
    if not head:
        return
    lines = head.split(b"\r\n")
    hold(lines[0].startswith(b"GET /") and lines[0].endswith(b" HTTP/1.1"),
         f"handshake: {lines[0]!r}")
    names = [line.partition(b":")[0].lower() for line in lines[1:-2]]
    for name in (b"host", b"upgrade", b"connection", b"sec-websocket-key"):
        hold(names.count(name) == 1, f"handshake: {names.count(name)} fields {name!r}")
    for client in world.clients:
        if client.greeting.methods:
            hold(client.greeting.key not in head,
                 "handshake: the client's own key reached the upstream")


# --- Counters -----------------------------------------------------------------------------------


def check_counts(story: Story) -> None:
    """The counters of a relay agree with what its far ends saw."""
    hold(story.record.counts == story.trace.outcome[3], "counters: the record has others")
    hold(story.record.started <= story.trace.began <= story.settled <= story.ended + GRAIN,
         "counters: the times are out of order")
    hold(math.isclose(story.record.ended, story.ended), "counters: the record ended later")
    for side, view in zip(Side, [story.client, story.upstream], strict=True):
        if view is not None:
            _check_leg(story, view, story.record.counts[side])
            _check_cut(story, view, story.record.counts[side])


def _check_cut(story: Story, view: View, counts: LegCounts) -> None:
    """Who lost bytes by a reset is cut, and who saw a good end is not."""
    hold(counts.cut or not story.trace.dropped[view.side],
         f"counters: bytes for {view.name} were dropped, and it is not cut")
    hold(not counts.cut or not view.sees_clean_end or story.is_unix,
         f"counters: {view.name} is cut, and saw FIN and no RST")


def _check_leg(story: Story, view: View, counts: LegCounts) -> None:
    name, sent, heard = view.name, view.sent, view.heard
    hold(counts.bytes_in <= len(view.said), f"counters: more bytes in than {name} said")
    hold(counts.bytes_out >= len(view.got), f"counters: fewer bytes out than {name} heard")
    if view.sees_clean_end and view.sees_to_the_end:
        hold(counts.bytes_out == len(view.got),
             f"counters: {counts.bytes_out} bytes out, and {name} heard {len(view.got)}")
    hold(counts.copied + counts.spliced == counts.bytes_in, f"counters: {name} copied, spliced")
    if view.is_raw:
        frames = len([one for one in story.client.heard.frames if one.opcode < CLOSE])
        hold(counts.frames >= frames, f"counters: the client heard {frames} frames, not "
             f"{counts.frames}")
        return
    if heard.closed is not None:
        hold(counts.close_sent == heard.closed.code,
             f"counters: close_sent is {counts.close_sent}, {name} heard {heard.closed.code}")
    if counts.close_received is not None:
        hold(sent.closed is not None and sent.closed.code == counts.close_received,
             f"counters: close_received of {name} is {counts.close_received}")
    pings = len([one for one in heard.frames if is_own_ping(one)])
    hold(counts.pings_sent >= pings, f"counters: {name} heard {pings} pings of our own")
    if view.sees_clean_end and view.sees_to_the_end:
        hold(counts.pings_sent == pings,
             f"counters: pings_sent is {counts.pings_sent}, not {pings}")
    _check_frames(story, view, counts)


def _check_frames(story: Story, view: View, counts: LegCounts) -> None:
    """Exact where this side's stream was walked to its end; never more than it said."""
    sent, name = view.sent, view.name
    said = (len(sent.frames) + (sent.part_at is not None), sent.messages, sent.payload)
    counted = (counts.frames, counts.messages, counts.payload)
    walked_to_its_end = counts.close_received is not None or (
        story.is_offender(view) and story.cause in ("framing", "too big", "cut", "finished")
    )
    if walked_to_its_end:
        hold(counted == said or sent.fault == "text",
             f"counters: frames, messages, payload of {name}: {counted}, and it said {said}")
    elif not sent.fault:
        hold(all(one <= two for one, two in zip(counted, said, strict=True)),
             f"counters: frames, messages, payload of {name}: {counted}, and it said {said}")


def check_pairs(world: World) -> None:
    """Each relay joins one client with one upstream that was asked for that very client."""
    seen: set[int] = set()
    for trace in world.engine.traces:
        for far in (trace.client_far, trace.upstream_far):
            hold(far is None or id(far) not in seen, "pairs: a far end in two relays")
            seen.add(id(far) if far is not None else 0)
    for story in stories_of(world):
        if story.upstream is None:
            hold(story.route.upstream == "echo", "pairs: no upstream")
            continue
        upstream, client = story.upstream.actor, story.client.actor
        assert isinstance(client, Client)
        if isinstance(upstream, Upstream):
            hold(upstream.path.startswith(f"/{story.route.name}/{client.name}".encode()) or
                 client.greeting.kind == "hostile",
                 f"pairs: {client.name} was joined with {upstream.path!r}")
        else:
            hold(isinstance(upstream, RawUpstream), "pairs: another kind of upstream")
        hold(str(upstream.far.address) == story.record.endpoint, "pairs: another endpoint")

