"""Which engine runs, and why."""

from gateway.engine.contract import Engine
from gateway.errors import EngineRefused


def choose(wanted: str) -> tuple[Engine, str]:
    """The engine for `gateway.engine` of the table, and the reason for the start line.

    Raises `EngineRefused` where the one that the table demands cannot run here.
    """
    if wanted not in ("auto", "uvloop"):
        raise EngineRefused(
            f'engine "{wanted}" is not built in this version; use "auto" or "uvloop"'
        )
    try:
        # Only the engine that runs is loaded.
        from gateway.engine.uv import UvEngine  # noqa: PLC0415
    except ImportError as error:
        raise EngineRefused(f"engine uvloop cannot be loaded: {error}") from error
    reason = "the table demands it" if wanted == "uvloop" else "io_uring is not built"
    return UvEngine(), reason
