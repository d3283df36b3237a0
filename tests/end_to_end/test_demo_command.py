"""`make demo`, with another program in the gateway's place: how it ends."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
# What make itself says, once in a thousand times, where its handler of the signal and its own wait
# race for the end of the same child.
MAKE_RACED = "wait: No child processes"
# A handler and pause(2) would miss, once in a thousand times, a signal that comes just between.
PROGRAM = """
import signal, sys
if sys.argv[-1] == "certs":
    sys.exit()                               # whoever has none makes some first
ends = (signal.SIGINT, signal.SIGTERM)
for number in ends:
    signal.signal(number, lambda *_: None)   # a shell has SIGINT ignored in the background
signal.pthread_sigmask(signal.SIG_BLOCK, ends)
print("up", flush=True)
signal.sigwait(ends)
sys.exit({code})
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
@pytest.mark.parametrize(
    ("code", "words"), [(0, ""), (4, ""), (3, "Error 3")], ids=["ended", "cut", "failed"]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("target", ["demo", "demo-tls"])
def test_make_demo_ends_quietly(
    tmp_path: Path, code: int, words: str, number: int, target: str
) -> None:
    """Ctrl and C reaches all of a terminal's programs; `kill` make alone, which passes it on.
    A page that was open has its session cut: no error. What failed still says so."""
    said = MAKE_RACED
    while MAKE_RACED in said:
        said = end_demo(tmp_path, code, number, target)
    assert words in said
    assert words or said == ""


def end_demo(tmp_path: Path, code: int, number: int, target: str) -> str:
    """What make says when this signal ends it, and its program ends with this code."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(code=code))
    stand_in = f"{shlex.quote(sys.executable)} {shlex.quote(str(program))}"
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    process = subprocess.Popen(
        ["make", target, "PYTHON=true", f"PY={stand_in}"], cwd=ROOT, text=True, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )
    try:
        assert process.stdout
        while process.stdout.readline() not in ("up\n", ""):
            pass
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return said
