"""Which engine runs, and why.

Laws of this file:

- "auto" never fails because of io_uring. It is uvloop as long as the ring is not the cheaper one:
  measured, 7.9 against 8.9 microseconds for a 64 B echo (tests/bench). Why is said at start.
- An engine that the table names runs, or nothing does.
- Only what runs is loaded.
"""

from gateway.engine.contract import Engine
from gateway.errors import EngineRefused

DEMANDED = "the table demands it"
DEAR_NS = 500                      # of a system call: from here on it is worth saving
CHEAPER = 'it is the cheaper one; io_uring can be had here by engine = "io_uring"'
NOT_BUILT = "its extension was not built: no compiler, or no liburing with its headers"


def choose(wanted: str, ring: str = "auto") -> tuple[Engine, str]:
    """The engine for `gateway.engine` of the table, and the reason for the start line.

    ring: `gateway.ring`, how relays move where the engine is io_uring. Raises `EngineRefused`
    where what the table demands cannot run here.
    """
    assert wanted in ("auto", "io_uring", "uvloop")
    assert ring in ("auto", "completions", "readiness")
    if wanted == "uvloop":
        return _uvloop(), DEMANDED
    if wanted == "auto":
        refused = why_no_uring()
        return _uvloop(), f"no io_uring: {refused}" if refused else CHEAPER
    form, why = (ring, DEMANDED) if ring != "auto" else ring_form()
    engine, refused = _uring(form)
    if engine is None:
        remedy = 'engine = "auto" runs uvloop instead'
        if ring == "completions" and not why_no_uring():
            remedy = 'ring = "readiness" can be had'
        raise EngineRefused(f'engine "io_uring" cannot run here: {refused}; {remedy}')
    return engine, f"{DEMANDED}; relays by {form}: {why}" if ring == "auto" else (
        f"{DEMANDED}, and relays by {form}"
    )


def ring_form() -> tuple[str, str]:
    """What `ring = "auto"` is on this machine, where io_uring can be had at all, and why."""
    from gateway.engine.uring_ring import call_cost_ns  # noqa: PLC0415 - see the module's docstring
    from gateway.engine.uring_setup import refusal_of_completions  # noqa: PLC0415 - likewise

    cost = call_cost_ns()
    if cost < DEAR_NS:
        return "readiness", f"a system call takes {cost} ns, {DEAR_NS} would be dear"
    refused = refusal_of_completions()
    if refused:
        return "readiness", f"no completions: {refused}"
    return "completions", f"a system call takes {cost} ns, {DEAR_NS} are dear"


def why_no_uring() -> str:
    """Why the engine on io_uring cannot run here, with the likely cause; "" if it can."""
    try:
        from gateway.engine import uring_setup  # noqa: PLC0415 - see the module's docstring
    except ImportError:
        return NOT_BUILT
    return uring_setup.refusal()


def _uring(form: str) -> tuple[Engine | None, str]:
    """The engine, or why not. What a trial ring got, the real one may still be refused."""
    refused = why_no_uring()
    if refused:
        return None, refused
    from gateway.engine.uring import UringEngine  # noqa: PLC0415 - see the module's docstring
    from gateway.engine.uring_ring import RingRefused  # noqa: PLC0415 - likewise
    from gateway.engine.uring_setup import (  # noqa: PLC0415 - likewise
        explain_error,
        refusal_of_completions,
    )

    if form == "completions" and (refused := refusal_of_completions()):
        return None, refused
    try:
        return UringEngine(form), ""
    except (RingRefused, OSError) as error:
        return None, explain_error(error)


def _uvloop() -> Engine:
    try:
        from gateway.engine.uv import UvEngine  # noqa: PLC0415 - see the module's docstring
    except ImportError as error:
        raise EngineRefused(f"engine uvloop cannot be loaded: {error}") from error
    return UvEngine()
