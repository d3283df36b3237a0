"""Make the test suite 25.10.1, which is Python 2.7 only, run on Python 3.

    port.py SOURCE_FOLDER      (with the Python whose environment gets it)

The cases keep their own words: only the language is translated. Every source is read as latin-1,
so that a Python 2 byte string becomes a str of the same numbers; where bytes leave or enter a case
(send..., onMessage, onPong) they are converted as latin-1. What must be found and is not ends the
translation: a case that was translated by half would test something else.
"""

import pathlib
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable
from typing import Any

KEEP = {"_version.py", "fuzzing.py", "caseset.py"}
LOST_AT_THE_TOP = "CSS_COMMON = CSS_DETAIL_REPORT = CSS_MASTER_REPORT = JS_MASTER_REPORT = ''\n"

PY2 = '''
"""Python 2's bytes, as Python 3's str of the same numbers."""
import binascii as _real


def octets(data):
    return data.encode("latin-1") if isinstance(data, str) else bytes(data)


def text(data):
    return data if isinstance(data, str) else bytes(data).decode("latin-1")


class binascii:
    @staticmethod
    def b2a_hex(data):
        return _real.b2a_hex(octets(data)).decode()

    hexlify = b2a_hex
'''

RESOURCES = """
import os as _os
class pkg_resources:
    @staticmethod
    def resource_filename(package, name):
        return _os.path.join(_os.path.dirname(_os.path.dirname(_os.path.abspath(__file__))), name)
"""

SENDERS = """   MAX_WIRE_LOG_DATA = 256

   def sendFrame(self, opcode, payload = b"", *more, **named):
      super().sendFrame(opcode, octets(payload), *more, **named)

   def sendMessage(self, payload, *more, **named):
      super().sendMessage(octets(payload), *more, **named)

   def sendMessageFrameData(self, payload, *more, **named):
      return super().sendMessageFrameData(octets(payload), *more, **named)

   def sendCloseFrame(self, code = None, reasonUtf8 = None, isReply = False):
      super().sendCloseFrame(code, None if reasonUtf8 is None else octets(reasonUtf8), isReply)
"""


def must(text: str, old: str, new: str) -> str:
    """`text` with `old` replaced by `new`; ends the translation where there is none."""
    if old not in text:
        sys.exit(f"port.py: expected text not found: {old!r}")
    return text.replace(old, new)


def port_case(text: str) -> str:
    """case.py: what a case compares and is told is str of bytes."""
    text = must(text, "pickle.dumps(obj1) == pickle.dumps(obj2)", "obj1 == obj2")
    text = must(text, '("message", msg, binary)', '("message", _text(msg), binary)')
    text = must(text, '("ping", payload)', '("ping", _text(payload))')
    text = must(text, '("pong", payload)', '("pong", _text(payload))')
    return must(text, "import pickle", "from autobahntestsuite.py2 import text as _text")


def port_case6(text: str) -> str:
    """case6_x_x.py: its UTF-8 validator wants bytes."""
    return must(text, "v.validate(vss[:i])", "v.validate(vss[:i].encode('latin-1'))")


def port_case10(text: str) -> str:
    """case10_1_1.py: a division that Python 2 cut to whole numbers."""
    return must(text, "len(self.payload) / self", "len(self.payload) // self")


def port_case12(text: str) -> str:
    """case12_x_x.py: where its test data lies, and how many messages a case sends."""
    text = must(
        text,
        "import copy, os, pkg_resources, hashlib, binascii",
        "import copy, os, hashlib\nfrom autobahntestsuite.py2 import binascii\n" + RESOURCES,
    )
    text = must(text, "1000, ", "MESSAGES, ")
    messages = "MESSAGES = int(os.environ.get('AUTOBAHN_MESSAGES', '1000'))\nMSG_SIZES = ["
    return must(text, "MSG_SIZES = [", messages)


def port_package(text: str) -> str:
    """case/__init__.py: 9.9.1 is not among the cases that run."""
    return text.replace("from .case9_9_1 import *\n", "")


def port_fuzzing(text: str) -> str:
    """fuzzing.py: bytes at the seam to Autobahn, and no report pages."""
    text = must(
        text,
        "import os, json, binascii, time, textwrap, pkg_resources",
        "import os, json, time, textwrap\n"
        "from autobahntestsuite.py2 import binascii, octets, text as _text",
    )
    pages = r"from \.?report import CSS_COMMON(.*\\\n)*.*JS_MASTER_REPORT\n"
    text = re.sub(pages, LOST_AT_THE_TOP, text)
    log = "def asciiLogData(data, maxlen = 64, replace = False):\n"
    text = must(text, log, log + "   data = octets(data)\n")
    text = must(text, "dd = data[:maxlen] + ellipses", "dd = data[:maxlen] + octets(ellipses)")
    text = must(text, "p = ''.join(payload)", "p = b''.join(payload)")
    return must(text, "   MAX_WIRE_LOG_DATA = 256\n", SENDERS)


PORTS: dict[str, Callable[[str], str]] = {
    "case.py": port_case,
    "case6_x_x.py": port_case6,
    "case10_1_1.py": port_case10,
    "case12_x_x.py": port_case12,
    "__init__.py": port_package,
    "fuzzing.py": port_fuzzing,
}


def refactoring() -> Any:
    """lib2to3's tool, or that of its successor outside the standard library."""
    try:
        from lib2to3 import refactor  # noqa: PLC0415 (only one of the two exists)

        fixes = "lib2to3.fixes"
    except ImportError:                 # Python 3.13 and later
        from fissix import (  # type: ignore[import-not-found, no-redef, unused-ignore]  # noqa: PLC0415
            refactor,
        )

        fixes = "fissix.fixes"
    fixers = refactor.get_fixers_from_package(fixes)
    return refactor.RefactoringTool(fixers, {"print_function": False})


def port_file(tool: Any, path: pathlib.Path) -> None:
    """Translate one file where it stands."""
    text = path.read_bytes().decode("latin-1").replace("\r\n", "\n")
    unused = "import binascii\nimport array"
    if path.name == "case6_x_x.py" and unused in text:
        text = text[: text.index(unused)]              # its self-test at the end is never called
    path.write_text(text + "\n", encoding="utf-8")     # fix_import looks at the neighbours on disk
    text = str(tool.refactor_string(text + "\n", str(path)))
    ours = "from autobahntestsuite.py2 import binascii"
    text = re.sub(r"^import binascii$", ours, text, flags=re.MULTILINE)
    if path.parent.name == "case":
        text = text.replace("(object, Case, )", "(Case, )")
    if path.name in PORTS:
        text = PORTS[path.name](text)
    path.write_text(text, encoding="utf-8")


def mend_autobahn(site: pathlib.Path) -> None:
    """Autobahn 0.10.9 itself is Python 3, but for one division.

    The other change lets its 1007 answer to a close reason that is not UTF-8 (case 7.5.1) end
    cleanly; as released it raises and resets.
    """
    path = site / "autobahn" / "websocket" / "protocol.py"
    text = path.read_text(encoding="utf-8")
    text = text.replace("range(payload_len / len(payload))", "range(payload_len // len(payload))")
    text = text.replace("reasonRaw.decode('utf8')", "reasonRaw.decode('utf8', 'replace')")
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Copy the suite into this Python's packages and translate it there."""
    source = pathlib.Path(sys.argv[1])
    site = pathlib.Path(sysconfig.get_paths()["purelib"])
    target = site / "autobahntestsuite"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source / "autobahntestsuite", target)
    for path in target.glob("*.py"):
        if path.name not in KEEP:
            path.unlink()
    version = "from ._version import __version__\nversion = __version__\n"
    (target / "__init__.py").write_text(version, encoding="utf-8")
    tool = refactoring()
    paths = sorted(target.rglob("*.py"))
    for path in paths:
        port_file(tool, path)
    (target / "py2.py").write_text(PY2, encoding="utf-8")
    mend_autobahn(site)
    print("ported", len(paths), "files")


if __name__ == "__main__":
    main()
