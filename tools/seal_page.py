"""Write into the built-in page the hashes of its one style and one script.

    python3 tools/seal_page.py     (or: make format)

The page forbids by Content-Security-Policy all but these two; whoever changes them runs this, and
a test in tests/house fails until then.
"""

import base64
import hashlib
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "gateway" / "protocol" / "page.html"


def sealed(text: str) -> str:
    """The page with true hashes. Raises AssertionError if it has not one style and one script."""
    for tag in ("style", "script"):
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(found) == 1, f"{len(found)} <{tag}> elements, expected one"
        digest = base64.b64encode(hashlib.sha256(found[0].encode()).digest()).decode()
        text, count = re.subn(rf"({tag}-src 'sha256-)[^']*'", rf"\g<1>{digest}'", text)
        assert count == 1, f"{count} {tag}-src in the policy, expected one"
    return text


if __name__ == "__main__":
    PAGE.write_text(sealed(PAGE.read_text()))
