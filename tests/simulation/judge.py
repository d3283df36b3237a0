"""Judges a life that is over: all invariants, in an order that names the nearest first."""

from simulation.accounts import (
    check_counts,
    check_life,
    check_limits,
    check_pairs,
    check_sessions,
)
from simulation.oracle import check_streams
from simulation.story import Story, stories_of
from simulation.verdicts import check_end
from simulation.watch import BrokenInvariantError
from simulation.world import World


def judge(world: World) -> None:
    """Raises BrokenInvariantError for the first invariant that does not hold."""
    check_life(world)
    check_sessions(world)
    check_pairs(world)
    check_limits(world)
    for story in stories_of(world):
        try:
            check_streams(story)
            check_end(story)
            check_counts(story)
        except BrokenInvariantError as broken:
            raise BrokenInvariantError(f"{broken} [{_who(story)}]") from None


def _who(story: Story) -> str:
    """Whose relay it is, for the reader of a log."""
    upstream = story.upstream.actor.name if story.upstream else "echo"
    return (
        f"{story.client.actor.name} and {upstream}, route {story.route.name}, "
        f"{story.record.session}, links {story.trace.client} and {story.trace.upstream}"
    )
