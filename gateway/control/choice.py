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
CHEAPER = 'it is the cheaper one; io_uring can be had here by engine = "io_uring"'
NOT_BUILT = "its extension was not built: no compiler, or no liburing with its headers"


def choose(wanted: str) -> tuple[Engine, str]:
    """The engine for `gateway.engine` of the table, and the reason for the start line.

    Raises `EngineRefused` where the one that the table demands cannot run here.
    """
    assert wanted in ("auto", "io_uring", "uvloop")
    if wanted == "uvloop":
        return _uvloop(), DEMANDED
    if wanted == "auto":
        refused = why_no_uring()
        return _uvloop(), f"no io_uring: {refused}" if refused else CHEAPER
    engine, refused = _uring()
    if engine is None:
        raise EngineRefused(
            f'engine "io_uring" cannot run here: {refused}; engine = "auto" runs uvloop instead'
        )
    return engine, DEMANDED


def why_no_uring() -> str:
    """Why the engine on io_uring cannot run here, with the likely cause; "" if it can."""
    try:
        from gateway.engine import uring_setup  # noqa: PLC0415 - see the module's docstring
    except ImportError:
        return NOT_BUILT
    return uring_setup.refusal()


def _uring() -> tuple[Engine | None, str]:
    """The engine, or why not. What a trial ring got, the real one may still be refused."""
    refused = why_no_uring()
    if refused:
        return None, refused
    from gateway.engine.uring import UringEngine  # noqa: PLC0415 - see the module's docstring
    from gateway.engine.uring_ring import RingRefused  # noqa: PLC0415 - likewise
    from gateway.engine.uring_setup import explain_error  # noqa: PLC0415 - likewise

    try:
        return UringEngine(), ""
    except (RingRefused, OSError) as error:
        return None, explain_error(error)


def _uvloop() -> Engine:
    try:
        from gateway.engine.uv import UvEngine  # noqa: PLC0415 - see the module's docstring
    except ImportError as error:
        raise EngineRefused(f"engine uvloop cannot be loaded: {error}") from error
    return UvEngine()
