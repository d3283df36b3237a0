"""The table of ends: was there cause for the end, came it in time, and was each side told rightly?

The record names a cause and a side. What the far ends did must bear it out, each side must have
heard what the table has for that cause, and nothing that ends a relay may be overlooked for long.
"""

import math

from gateway.heartbeat import PING_RETRY
from simulation.codec import CLOSE, PING, PONG, Frame
from simulation.ends import is_own_ping
from simulation.plans import NEVER
from simulation.story import GRAIN, Story, View
from simulation.watch import INSTANT, hold

OWN_FAULT = {"framing": 1002, "text": 1007, "too big": 1009}
LOST_LIKE = ("cut", "truncated", "lost", "silent", "stalled", "unanswered", *OWN_FAULT)
BY_ORDER = ("idle timeout", "session timeout", "drain", "killed")


def check_end(story: Story) -> None:
    """Everything about how one relay ended."""
    check_cause(story)
    check_in_time(story)
    for view in story.sides:
        if not view.is_raw:
            check_told(story, view)
    if story.upstream is not None and story.upstream.is_raw:
        check_raw_end(story, story.upstream)
    check_fins(story)
    for view in story.sides:
        check_no_early_reset(story, view)
    for view in story.sides:
        if not view.is_raw:
            check_heartbeat(story, view)
            check_pinged(story, view)


# --- Was there cause? ---------------------------------------------------------------------------


def check_cause(story: Story) -> None:
    """What the far ends did bears out what the record says."""
    offender = next((view for view in story.sides if story.is_offender(view)), None)
    if story.upstream is None and story.record.blame is not None and offender is None:
        return                                      # the built-in echo's doing
    cause = story.cause
    if cause in BY_ORDER:
        hold(story.record.blame is not None and story.record.blame.value == "gateway",
             f"cause: {cause}, and blame is {story.record.blame}")
        _check_order(story)
        return
    hold(offender is not None, f"cause: {cause}, and nobody is to blame")
    assert offender is not None
    other = story.other(offender)
    settled = story.settled + GRAIN
    bears_out = {
        "closed": lambda: offender.close_at <= settled,
        "finished": lambda: offender.finished_at <= settled and not offender.truncates,
        "cut": lambda: offender.finished_at <= settled and _is_cut(story, offender)
        and not offender.truncates,
        "truncated": lambda: offender.finished_at <= settled and offender.truncates,
        "lost": lambda: offender.went_at <= settled or _is_closed_hard(offender),
        "silent": lambda: _is_silent(story, offender),
        "stalled": lambda: _is_stalled(story, offender),
        "unanswered": lambda: _is_unanswered(story, offender, other),
        "framing": lambda: _is_at_fault(offender, "framing"),
        "text": lambda: _is_at_fault(offender, "text") or _ends_in_a_character(story, offender),
        "too big": lambda: _is_at_fault(offender, "too big"),
    }
    hold(cause in bears_out, f"cause: {cause}")
    hold(bears_out[cause](), f"cause: {cause} by {offender.name} ({story.record.detail}), which "
         f"it did not do: {offender.deeds}, fault {offender.sent.fault!r}")


def _check_order(story: Story) -> None:
    route, began, settled = story.route, story.trace.began, story.settled + GRAIN
    if story.cause == "drain":
        hold(story.world.drain_at <= settled, "cause: drained before the drain")
    elif story.cause == "killed":
        hold(story.world.kill_at <= settled or story.world.drain_at <= settled,
             "cause: killed before the end")
    elif story.cause == "session timeout":
        hold(route.session_timeout and settled >= began + route.session_timeout,
             "cause: session_timeout came too early")
    else:
        hold(route.idle_timeout > 0, "cause: no idle_timeout is set")
        for view in story.sides:
            since, until = settled - route.idle_timeout + GRAIN, settled - story.transit - GRAIN
            hold(until < since or not view.is_gagged(until) or "vanish" in view.deeds,
                 f"cause: idle_timeout, and {view.name} was not read")
            hold(not _was_active(view, since, until),
                 f"cause: idle_timeout, and {view.name} was not idle")


def _was_active(view: View, since: float, until: float) -> bool:
    """Whether a frame began or went on then, but for pongs, which may answer our own pings.
    Part of a header, or of a control frame, is not yet anything."""
    if view.is_raw:
        return view.spoke_between(since, until)
    first, last = view.left_by(since), view.left_by(until)
    part = view.sent.part_at
    return any(
        one.opcode != PONG and one.end > first and one.end <= last for one in view.sent.frames
    ) or (part is not None and last > first and last > part + 14)


def _is_cut(story: Story, view: View) -> bool:
    """It ends inside a frame; toward a raw upstream, without a Close."""
    if story.trace.rules.raw:
        return view.sent.closed is None
    return view.in_a_frame or bool(view.sent.fault and not view.sent.certain)


def _is_closed_hard(view: View) -> bool:
    return "close" in view.deeds or "vanish" in view.deeds


def _is_silent(story: Story, view: View) -> bool:
    """It gave no sign of life for `heartbeat_timeout` after a ping."""
    route = story.route
    since = story.settled - route.heartbeat_timeout + INSTANT     # when it was pinged
    until = story.settled - story.transit
    gagged = view.is_gagged(until) and "vanish" not in view.deeds
    last = view.last_byte_by(until)
    asked = not view.sees_to_the_end or any(
        one.opcode == PING and last - story.transit <= at <= since + story.transit
        for at, one in view.actor.heard
    )
    return bool(route.heartbeat) and asked and not view.spoke_between(since, until) and not gagged


def _is_stalled(story: Story, view: View) -> bool:
    """It took nothing for `write_timeout`."""
    since = story.settled - story.patience + story.transit
    until = story.settled - story.transit
    return "vanish" in view.deeds or any(
        begin <= since and end >= until for begin, end in view.actor.stalls
    )


def _is_unanswered(story: Story, view: View, other: View | None) -> bool:
    """The other side's Close was not answered within `close_timeout`."""
    if other is None:
        return True
    until = story.settled - story.transit
    is_gagged = view.is_gagged(until) and "vanish" not in view.deeds and any(
        begin <= until and end > story.settled + GRAIN for begin, end in other.actor.stalls
    )
    waited = story.settled - other.close_at >= story.route.close_timeout - GRAIN
    return bool(view.actor.stalls) or (waited and view.close_at > until and not is_gagged)


def _is_at_fault(view: View, kind: str) -> bool:
    """Its stream is broken in this way; of one that breaks off in a header both may be said."""
    return view.sent.fault == kind


def _ends_in_a_character(story: Story, view: View) -> bool:
    """A raw upstream's text that is none, or that ends inside a character."""
    if not view.is_raw or story.route.frames != "text":
        return False
    try:
        view.said.decode()
    except UnicodeDecodeError:
        return True
    return False


# --- Came it in time? ---------------------------------------------------------------------------


def check_in_time(story: Story) -> None:
    """Nothing that ends a relay is overlooked for long."""
    route, ended = story.route, story.ended
    # The answer is waited for, then the end of the one that was told; each anew, once, where bytes
    # were on their way when the kernel was last asked: when they were taken, nobody knows.
    slack = story.transit + 2 * (2 * route.close_timeout) + 0.5
    for view in story.sides:
        # While bytes flow, however slowly, or a frame does, nobody is cut.
        slack += sum(min(end - at, story.patience) for at, end in view.actor.stalls)
        slack += story.patience if "vanish" in view.deeds else 0.0
        slack += sum(end - at for at, end in view.actor.in_frame if end < math.inf)
    if route.session_timeout:
        hold(ended <= story.trace.began + route.session_timeout + slack,
             "progress: session_timeout was overlooked")
    hold(ended <= story.world.told_by + slack or story.world.drain_at < story.trace.began,
         "progress: a relay outlived the drain")
    if any(view.actor.stalls or "vanish" in view.deeds for view in story.sides):
        _check_vanished(story)
        return
    for view in story.sides:
        for what, at in (
            ("Close", view.close_at), ("fault", _certain_fault_at(view)), ("FIN", view.finished_at),
            ("RST", view.deeds.get("reset", math.inf)),
        ):
            hold(ended <= max(at, story.trace.began) + slack,
                 f"progress: {what} of {view.name} at {at:.3f} ended nothing until {ended:.3f}")
    if route.idle_timeout and story.upstream is not None:
        last = max(story.trace.began, *(view.last_byte_at for view in story.sides))
        hold(ended <= last + 2 * route.idle_timeout + slack,
             "progress: idle_timeout was overlooked")
    for view in story.sides:
        if not view.is_raw and view.actor.plan.manners.pong == NEVER:
            _check_silence(story, view, view.last_byte_at)


def _certain_fault_at(view: View) -> float:
    sent = view.sent
    return view.when(sent.fault_end) if sent.fault and sent.certain else math.inf


def _check_vanished(story: Story) -> None:
    """One that is gone without a word is found by the heartbeat."""
    if any(view.actor.stalls for view in story.sides):
        return
    for view in story.sides:
        if "vanish" in view.deeds and not view.is_raw:
            _check_silence(story, view, view.last_byte_at)


def _check_silence(story: Story, view: View, since: float) -> None:
    """`view` is quiet since then and answers no ping, so it must have been found lost."""
    route, other = story.route, story.other(view)
    if not route.heartbeat or other is None or other.in_a_frame:
        return
    if story.trace.held[other.side]:
        return                                      # no ping fits into a frame that is held
    # Who is not read is not judged.
    begin = max(since, story.trace.began) + story.trace.held[view.side]
    # No ping fits into a frame that the other side takes its time for.
    framed = sum(until - at for at, until in other.actor.in_frame if until < math.inf)
    limit = begin + framed + route.heartbeat + PING_RETRY + route.heartbeat_timeout
    if other.last_byte_at > begin:
        # A foreign ping may stand for ours, and one that takes bytes has its time anew.
        limit += route.heartbeat_timeout
    ending = min(other.close_at, other.finished_at, other.deeds.get("reset", math.inf),
                 _certain_fault_at(other))
    if ending <= limit:
        # From then on nobody is pinged: what still waits for `view` goes by write_timeout.
        limit = max(limit, ending + story.patience)
    hold(story.ended <= limit + story.transit + 2 * route.close_timeout,
         f"progress: {view.name} was silent since {begin:.3f}, until {story.ended:.3f}")


# --- Was each side told? ------------------------------------------------------------------------


def check_told(story: Story, view: View) -> None:
    """The Close that a side heard is the other's own, or the one of the table of ends."""
    heard, other = view.heard.closed, story.other(view)
    expected = expected_code(story, view)
    if heard is not None:
        if other is not None and not other.is_raw and _is_passed(view, heard, other):
            return
        if other is None:
            return
        hold(expected is not None and heard.code == expected,
             f"told: {view.name} heard Close {heard.code}, and the table has {expected} for "
             f"{story.cause} by {story.record.blame}")
    elif expected is not None and _must_hear(story, view):
        hold(False, f"told: {view.name} never heard Close {expected} for {story.cause} by "
             f"{story.record.blame}: {view.deeds}")


def _is_passed(view: View, heard: Frame, other: View) -> bool:
    closed = other.sent.closed
    return closed is not None and (
        view.got[heard.at : heard.end] == other.said[closed.at : closed.end]
    )


def expected_code(story: Story, view: View) -> int | None:
    """What the table of ends has for this side, where that is a Close of our own."""
    cause, route = story.cause, story.route
    is_client = view is story.client
    if story.trace.rules.raw and cause == "closed":
        assert view.sent.closed is not None, "closed, and nobody closed"
        return view.sent.closed.code
    if story.trace.rules.raw and cause == "finished":
        return 1000 if story.record.blame is not None and (
            story.record.blame.value == "upstream") else None
    if cause in LOST_LIKE:
        if story.is_offender(view):
            return OWN_FAULT.get(cause)
        return 1014 if is_client else 1001
    if cause == "session timeout" and is_client:
        return route.session_code
    if cause in ("drain", "killed") and is_client:
        return route.drain_code
    return 1001 if cause in BY_ORDER else None


def _must_hear(story: Story, view: View) -> bool:
    """Nothing kept this side from being told."""
    other = story.other(view)
    if other is None or story.cause == "killed":
        return False
    if not view.sees_to_the_end and not story.is_only_slow(view):
        return False
    if any(begin <= story.settled + story.transit and end >= story.settled - story.transit
           for begin, end in other.actor.in_frame):
        return False                                # a frame was under way toward it
    if other.in_a_frame:
        return False
    if other.finished_at <= story.settled and not other.is_raw:
        return False                                # FIN was passed on before
    if story.world.kill_at < story.ended + GRAIN:
        return False
    return not (story.is_offender(view) and story.cause in ("lost", "silent", "stalled"))


def check_raw_end(story: Story, view: View) -> None:
    """A raw upstream gets RST wherever a client was cut, broke a rule, or went without a Close."""
    if story.is_unix or not view.sees_to_the_end or view.finished_at < math.inf:
        return
    is_cut = (story.cause in LOST_LIKE and not story.is_offender(view)) or (
        story.cause == "finished" and story.is_offender(story.client)
    )
    if is_cut:
        hold("was reset" in view.deeds, f"cut: a raw upstream saw no RST ({story.cause})")
    if story.cause == "closed" and not story.is_hurried:
        late = view.actor.far.reset_why == "late"    # it spoke on when all was over
        hold("was reset" not in view.deeds or late,
             "told: a raw upstream saw RST, and the client had closed")


def check_fins(story: Story) -> None:
    """FIN passes between frames, and comes to a client right behind its farewell."""
    client = story.client
    closes = [at for at, one in client.actor.heard if one.opcode == CLOSE]
    if closes and client.sees_to_the_end:
        limit = max(story.settled, closes[0]) + story.transit
        hold(client.deeds.get("heard fin", math.inf) <= limit or "was reset" in client.deeds,
             f"told: the client heard its farewell at {closes[0]:.3f}, and no FIN")
    if story.upstream is None or story.upstream.is_raw:
        return
    for view, other in ((client, story.upstream), (story.upstream, client)):
        since = max(view.finished_at, view.last_byte_at, story.trace.began)
        if (
            view.finishes_well and other.sees_to_the_end and view.finished_at < math.inf
            and view.finished_at <= min(view.trouble_at(), other.trouble_at(), story.ordered_at)
            and story.settled > since + story.transit < other.trouble_at()
        ):
            hold(other.deeds.get("heard fin", math.inf) <= since + story.transit,
                 f"told: FIN of {view.name} at {since:.3f} did not pass")


def check_no_early_reset(story: Story, view: View) -> None:
    """After a farewell the link stays open for `close_timeout`, unless the side finishes: an RST,
    such as a close with unread bytes gives, would destroy the last word (RFC 6455 7.1.1)."""
    at = view.deeds.get("was reset", math.inf)
    told = story.record.counts[view.side].close_sent is not None
    given_up = story.is_offender(view) and story.cause in (
        "lost", "silent", "stalled", "unanswered"
    )
    if told and not given_up and view.actor.far.reset_why != "late" and not story.is_hurried:
        hold(at >= story.settled + story.route.close_timeout - GRAIN,
             f"told: {view.name} was reset at {at:.3f}, right behind its farewell")


# --- Heartbeat ----------------------------------------------------------------------------------


def check_heartbeat(story: Story, view: View) -> None:
    """A ping of our own comes to a quiet side only, and not while a foreign one is unanswered."""
    heartbeat = story.route.heartbeat
    foreign_at = -math.inf
    for at, one in view.actor.heard:
        if one.opcode != PING or _is_late(story, view, at):
            continue
        if not is_own_ping(one):
            foreign_at = at
            continue
        since, until = at - heartbeat + story.transit, at - story.transit
        hold((heartbeat and not view.spoke_between(since, until)) or _was_held(story, view),
             f"heartbeat: {view.name} was pinged at {at:.3f}, and had not been quiet")
        answered = any(when >= foreign_at - story.transit for when, _ in view.actor.pongs) or any(
            view.when(frame.end) >= foreign_at - story.transit
            for frame in view.sent.frames if frame.opcode == PONG
        )
        spoke = view.spoke_between(foreign_at - 2 * story.transit, until)
        hold(math.isinf(foreign_at) or answered or spoke,
             f"heartbeat: {view.name} was pinged at {at:.3f} while a foreign ping was unanswered")


def check_pinged(story: Story, view: View) -> None:
    """A side that has been quiet for `heartbeat` since its last sign of life is pinged, by us or
    by the other side, unless a frame toward it left no room for that."""
    heartbeat, other = story.route.heartbeat, story.other(view)
    if not heartbeat or other is None or any(story.trace.held):
        return                                      # who is held has not been quiet
    until = story.trouble_at() - story.transit
    pings = [at for at, one in view.actor.heard if one.opcode == PING]
    signs = sorted({story.trace.began, *(at for total, at in view.actor.shipped if total > 0)})
    for sign, following in zip(signs, [*signs[1:], math.inf], strict=True):
        due = max(sign, story.trace.began) + heartbeat
        latest = due + story.transit + PING_RETRY
        if latest >= min(following, until):
            continue
        if any(begin <= latest and end >= due for begin, end in other.actor.in_frame):
            continue
        hold(any(sign - story.transit <= at <= latest for at in pings),
             f"heartbeat: {view.name} was quiet since {sign:.3f}, and not pinged by {latest:.3f}")


def _is_late(story: Story, view: View, at: float) -> bool:
    """What it heard then may have waited for it to read on."""
    return any(begin <= at <= end + story.transit for begin, end in view.actor.stalls)


def _was_held(story: Story, view: View) -> bool:
    """It may have spoken without being read."""
    return story.trace.held[view.side] > 0
