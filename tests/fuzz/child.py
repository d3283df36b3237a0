"""One target under atheris, in a process of its own: `python -m tests.fuzz.child NAME OPTIONS`.

OPTIONS are libFuzzer's. `run.py` starts this; nobody else needs to.
"""

import sys

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

with atheris.instrument_imports(include=["gateway"]):
    from .targets import TARGETS


def main() -> None:
    """Fuzz until libFuzzer says that the time is up, or something was found."""
    target = TARGETS[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
