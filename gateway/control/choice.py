"""Which engine runs, and why.

Laws of this file:

- "auto" never fails because of io_uring. It is uvloop: where a system call is cheap the ring saves
  nothing, and where it is dear the start line says that the ring would (docs/io_uring.md).
- An engine that the table names runs, or nothing does.
- Only what runs is loaded, and only where it runs: the supervisor chooses, a worker makes.
"""

from dataclasses import dataclass

from gateway.engine.contract import Engine
from gateway.errors import EngineRefused

DEMANDED = "the table demands it"
DEAR_NS = 500                      # of a system call: from here on it is worth saving
NO_CHEAPER = 'io_uring would not be cheaper; it can be had here by engine = "io_uring"'
NOT_BUILT = "its extension was not built: no compiler, or no liburing with its headers"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which engine runs. `form` is how relays move in a ring; "" where there is none."""

    engine: str
    form: str
    reason: str                        # for the start line


def choose(wanted: str, ring: str = "auto") -> Choice:
    """The engine for `gateway.engine` of the table. `make` makes it, where it is to run.

    ring: `gateway.ring`, how relays move where the engine is io_uring. Raises `EngineRefused`
    where what the table demands cannot run here.
    """
    assert wanted in ("auto", "io_uring", "uvloop")
    assert ring in ("auto", "completions", "readiness")
    if wanted == "uvloop":
        return Choice(wanted, "", DEMANDED)
    refused = why_no_uring()
    if wanted == "auto":
        return Choice("uvloop", "", _without(refused) if refused else _why_uvloop())
    if refused:
        raise _refusal(refused)
    if ring == "auto":
        form, why = ring_form()
        return Choice(wanted, form, f"{DEMANDED}; relays by {form}: {why}")
    if ring == "completions" and (refused := why_no_completions()):
        raise _refusal(refused, 'ring = "readiness" can be had')
    return Choice(wanted, ring, f"{DEMANDED}, and relays by {ring}")


def make(engine: str, form: str) -> Engine:
    """The engine of a `Choice`, in the process that will run it.

    Raises `EngineRefused`: what a trial ring got, the real one may still be refused.
    """
    if engine == "io_uring":
        return _uring(form)
    assert engine == "uvloop"
    try:
        from gateway.engine.uv import UvEngine  # noqa: PLC0415 - see the module's docstring
    except ImportError as error:
        raise EngineRefused(f"engine uvloop cannot be loaded: {error}") from error
    return UvEngine()


def ring_form() -> tuple[str, str]:
    """What `ring = "auto"` is on this machine, where io_uring can be had at all, and why."""
    is_dear, why = _call_cost()
    if not is_dear:
        return "readiness", why
    refused = why_no_completions()
    if refused:
        return "readiness", f"no completions: {refused}"
    return "completions", why


def what_it_saves() -> str:
    """What io_uring would save here if it could be had; "" where its parts were not built."""
    try:
        is_dear, why = _call_cost()
    except ImportError:
        return ""
    return f"io_uring would save {'CPU' if is_dear else 'nothing'} here: {why}"


def _call_cost() -> tuple[bool, str]:
    """Whether a system call is dear here, and the figures."""
    from gateway.engine.uring_ring import call_cost_ns  # noqa: PLC0415 - see the module's docstring

    cost = call_cost_ns()
    is_dear = cost >= DEAR_NS
    dear = "are dear" if is_dear else "would be dear"
    return is_dear, f"a system call takes {cost} ns, {DEAR_NS} {dear}"


def _without(refused: str) -> str:
    """Where io_uring cannot be had. Nobody is to loosen a container's profile for nothing."""
    saves = what_it_saves()
    return f"no io_uring: {refused}" + (f"; {saves}" if saves else "")


def _why_uvloop() -> str:
    """Where io_uring could be had as well."""
    form, why = ring_form()
    if form == "readiness":
        return NO_CHEAPER
    return f'{why}: engine = "io_uring" would cost less here for small messages'


def why_no_uring() -> str:
    """Why the engine on io_uring cannot run here, with the likely cause; "" if it can."""
    try:
        from gateway.engine import uring_setup  # noqa: PLC0415 - see the module's docstring
    except ImportError:
        return NOT_BUILT
    return uring_setup.refusal()


def why_no_completions() -> str:
    """Why relays cannot move by completions, where io_uring can be had; "" if they can."""
    from gateway.engine import uring_setup  # noqa: PLC0415 - see the module's docstring

    return uring_setup.refusal_of_completions()


def ring_is_restricted() -> bool:
    """Whether the kernel holds rings to what the gateway uses, where io_uring can be had."""
    from gateway.engine import uring_setup  # noqa: PLC0415 - see the module's docstring

    return uring_setup.is_restricted()


def _uring(form: str) -> Engine:
    try:
        from gateway.engine.uring import UringEngine  # noqa: PLC0415 - see the module's docstring
        from gateway.engine.uring_ring import RingRefused  # noqa: PLC0415 - likewise
        from gateway.engine.uring_setup import explain_error  # noqa: PLC0415 - likewise
    except ImportError as error:
        raise _refusal(NOT_BUILT) from error
    try:
        return UringEngine(form)
    except (RingRefused, OSError) as error:
        raise _refusal(explain_error(error)) from error


def _refusal(why: str, remedy: str = 'engine = "auto" runs uvloop instead') -> EngineRefused:
    return EngineRefused(f'engine "io_uring" cannot run here: {why}; {remedy}')
