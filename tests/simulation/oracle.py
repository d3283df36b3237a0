"""What may arrive, and what must: nothing lost, doubled, out of order, altered, or a stranger's.

For each direction of a relay the frames that one side said are laid beside those that the other
heard. What is between them can only be the gateway's own; what is missing must have a reason.
"""

from simulation.codec import CLOSE, PING, PONG, TEXT, Frame, good_text
from simulation.ends import HEARTBEAT, is_own_ping
from simulation.story import Story, View
from simulation.watch import hold


def check_streams(story: Story) -> None:
    """Both directions of a relay."""
    client, upstream = story.client, story.upstream
    check_is_sound(story, client)
    if upstream is None:
        check_echo(story)
    elif upstream.is_raw:
        check_bytes_up(story, client, upstream)
        check_bytes_down(story, upstream, client)
    else:
        check_is_sound(story, upstream)
        check_frames(story, client, upstream)
        check_frames(story, upstream, client)


# --- What a side heard, by itself ---------------------------------------------------------------


def check_is_sound(story: Story, view: View) -> None:
    """It heard a valid stream up to its end: frames whole, rightly masked, one Close at most."""
    heard, got, name = view.heard, view.got, view.name
    hold(not heard.fault, f"sound: {name} heard broken frames: {heard.fault} at "
         f"{heard.fault_at}: {got[heard.fault_at:heard.fault_at + 20].hex(' ')}")
    if heard.closed is not None:
        hold(heard.closed.end == len(got), f"sound: {name} heard something behind a Close: "
             f"{got[heard.closed.end:][:20].hex(' ')}")
    if view.sees_clean_end and not (story.is_unix and view is story.upstream):
        hold(heard.part_at is None and not heard.holds,
             f"cut: {name} was cut inside a frame, and saw FIN")


# --- Frames -------------------------------------------------------------------------------------


def check_frames(story: Story, source: View, sink: View) -> None:
    """What `sink` heard is what `source` said, and frames of our own between."""
    said, heard = source.sent, sink.heard
    at = 0
    own: list[Frame] = []
    for one in heard.frames:
        raw = sink.got[one.at : one.end]
        skipped = at
        while skipped < len(said.frames) and not _equal(source, said.frames[skipped], raw):
            if not _is_swallowed(source, said.frames[skipped]):
                break
            skipped += 1
        if skipped < len(said.frames) and _equal(source, said.frames[skipped], raw):
            hold(not _is_swallowed(source, said.frames[skipped], surely=True),
                 f"heartbeat: the answer to our own ping reached {sink.name}")
            at = skipped + 1
        else:
            own.append(one)
            expected = said.frames[at] if at < len(said.frames) else None
            hold(_may_be_own(story, sink, one),
                 f"stream: {sink.name} heard {raw[:24].hex(' ')} ({len(raw)} bytes) where "
                 f"{_shown(source, expected)} was to come")
    while at < len(said.frames) and _is_swallowed(source, said.frames[at]):
        at += 1
    _check_rest(story, source, sink, at)
    _check_nothing_lost(story, source, sink, at, own)


def _equal(source: View, one: Frame, raw: bytes) -> bool:
    return source.said[one.at : one.end] == raw


def _shown(source: View, one: Frame | None) -> str:
    return source.said[one.at : one.end][:24].hex(" ") if one else "nothing"


def _is_swallowed(source: View, one: Frame, *, surely: bool = False) -> bool:
    """Whether it answers a ping of the gateway's own; `surely`: the only such ping there was."""
    if one.opcode != PONG or len(one.payload) != HEARTBEAT:
        return False
    own = [ping for _, ping in source.actor.heard if is_own_ping(ping)]
    if surely:
        answers = [pong for pong in source.sent.frames if pong.payload == one.payload]
        return len(own) == 1 and len(answers) == 1
    return any(ping.payload == one.payload for ping in own)


def _may_be_own(story: Story, sink: View, one: Frame) -> bool:
    if one.opcode == PING:
        return is_own_ping(one) and story.route.heartbeat > 0
    if one.opcode == PONG:
        return story.trace.rules.raw
    return one.opcode == CLOSE


def _check_rest(story: Story, source: View, sink: View, at: int) -> None:
    """Behind the last whole frame: the beginning of the next, or of one of our own."""
    rest = sink.got[sink.heard.end :]
    if not rest or sink.heard.closed is not None:
        return
    said = source.sent
    begin = said.frames[at].at if at < len(said.frames) else said.part_at
    following = b"" if begin is None else source.said[begin:]
    is_own = rest[0] in (0x80 | PING, 0x80 | CLOSE, 0x80 | PONG) and sink.heard.holds
    hold(following.startswith(rest) or is_own,
         f"stream: {sink.name} heard at its end {rest[:24].hex(' ')}, not the beginning of "
         f"{following[:24].hex(' ')}")


def _check_nothing_lost(
    story: Story, source: View, sink: View, at: int, own: list[Frame]
) -> None:
    """`at`: of the frames that were said so many have arrived, or were swallowed."""
    said = source.sent
    missing = len(said.frames) - at
    told = any(one.opcode == CLOSE for one in own)
    if missing and told and story.is_offender(source) and story.cause in (
        "framing", "text", "too big", "cut"
    ):
        hold(False, f"lost: {sink.name} was told of what broke, and {missing} frames before that "
             f"are missing")
    saw_fin = sink.sees_clean_end and not (story.is_unix and sink is story.upstream)
    if missing and saw_fin and sink.heard.closed is None and source.finishes_well:
        hold(sink.finished_at <= story.ended or sink.close_at <= story.ended,
             f"lost: {sink.name} saw FIN, and {missing} frames before it are missing")
    due = story.due(source)
    late = [one for one in said.frames[at:] if one.end <= due]
    hold(not late, f"lost: {len(late)} frames of {source.name} never reached {sink.name}, the "
         f"first at {late[0].at if late else 0}")


# --- Bytes --------------------------------------------------------------------------------------


def check_bytes_up(story: Story, client: View, upstream: View) -> None:
    """A raw upstream hears the payloads, and nothing else."""
    payloads, got = client.sent.raw, upstream.got
    _check_begins(payloads, got, "stream: the raw upstream heard other bytes than were said")
    due = story.due(client)
    whole = sum(
        len(one.payload) for one in client.sent.frames if one.end <= due and one.opcode < CLOSE
    )
    hold(len(got) >= whole, f"lost: {whole - len(got)} bytes never reached the raw upstream")
    if upstream.sees_clean_end and not story.is_unix:
        is_told = client.sent.closed is not None and len(got) == len(payloads)
        by_order = story.cause in ("idle timeout", "session timeout", "drain", "killed")
        finished = upstream.finished_at <= story.ended
        hold(is_told or by_order or finished,
             f"cut: a raw upstream saw a clean FIN ({story.cause})")
        hold(len(got) in client.sent.edges, "cut: a raw upstream saw a clean FIN inside a frame")


def check_bytes_down(story: Story, upstream: View, client: View) -> None:
    """Its bytes come in frames that are never cut inside a character, where they are text."""
    opcode = TEXT if story.route.frames == "text" else 2
    pings = [one.payload for one in client.sent.frames if one.opcode == PING]
    parts: list[bytes] = []
    for one in client.heard.frames:
        if one.opcode < CLOSE:
            hold(one.opcode == opcode and one.fin, f"stream: an odd frame: {one}")
            hold(opcode != TEXT or good_text(one.payload, whole=True) == len(one.payload),
                 "stream: text that is cut inside a character")
            parts.append(one.payload)
        elif one.opcode == PONG:
            hold(pings and pings.pop(0) == one.payload, "stream: a pong that answers no ping, or "
                 "not the next one")
        else:
            hold(_may_be_own(story, client, one), f"stream: a frame from nowhere: {one}")
    rest = b""
    if client.heard.part_at is not None:
        begin = client.heard.part_at
        short = client.got[begin + 1] & 127
        rest = client.got[begin + 2 + {126: 2, 127: 8}.get(short, 0) :]
    got = b"".join(parts)
    _check_begins(upstream.said, got + rest,
                  "stream: the client heard other bytes than the raw upstream said")
    due = story.due(client)
    unanswered = [one for one in client.sent.frames
                  if one.opcode == PING and one.end <= due and one.payload in pings]
    hold(not unanswered, f"stream: {len(unanswered)} pings were not answered")
    due = story.due(upstream)
    if opcode == TEXT:
        due = min(due, good_text(upstream.said, whole=False)) - 3
    hold(len(got) >= due, f"lost: {due - len(got)} bytes never reached the client")
    if story.cause == "finished" and client.heard.closed is not None:
        hold(got == upstream.said, "lost: the client was told 1000, and has not got all")


def _check_begins(said: bytes, heard: bytes, what: str) -> None:
    """`heard` is the beginning of `said`."""
    if not said.startswith(heard):
        at = next((at for at, (a, b) in enumerate(zip(said, heard, strict=False)) if a != b),
                  min(len(said), len(heard)))
        hold(False, f"{what}: at {at}: {heard[at:at + 24].hex(' ')} instead of "
             f"{said[at:at + 24].hex(' ')}")


# --- The built-in echo --------------------------------------------------------------------------


def check_echo(story: Story) -> None:
    """What comes back is what was said; messages may be cut into other frames."""
    client = story.client
    said = b"".join(one.payload for one in client.sent.frames if one.opcode < CLOSE)
    if client.sent.part_at is not None or story.trace.rules.deflate:
        return                          # what is cut or deflated may come back in other bytes
    got = b"".join(one.payload for one in client.heard.frames if one.opcode < CLOSE)
    _check_begins(said, got, "stream: the echo is another")
