"""Every mistake in a table has its message: an input beside the text that an operator reads.

`golden/NAME.toml`, or the folder `golden/NAME`, is a table with mistakes; `golden/NAME.txt` is what
`gateway check` says to it. After a message was changed on purpose, write all texts anew and read
the difference before it is committed:

    GOLDEN_REFRESH=1 python -m pytest tests/control/test_config_golden.py
"""

import os
from pathlib import Path

import pytest

from gateway.control.config import load
from gateway.errors import TableErrors

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(one for one in GOLDEN.iterdir() if one.suffix == ".toml" or one.is_dir())


@pytest.mark.parametrize("table", CASES, ids=lambda table: table.stem)
def test_message(table: Path) -> None:
    """The table is refused, with exactly the text beside it."""
    with pytest.raises(TableErrors) as refused:
        load(table)
    text = str(refused.value).replace(str(GOLDEN), "GOLDEN") + "\n"
    expected = table.with_suffix(".txt")
    if os.environ.get("GOLDEN_REFRESH"):
        expected.write_text(text)
    assert text == expected.read_text()


def test_there_are_many() -> None:
    """No case has got lost, and no text is left without its table."""
    assert len(CASES) >= 130
    assert {one.stem for one in GOLDEN.glob("*.txt")} == {one.stem for one in CASES}


def test_every_message_says_what_was_expected() -> None:
    """Place, found, expected and a remedy are in each line."""
    for table in CASES:
        with pytest.raises(TableErrors) as refused:
            load(table)
        for error in refused.value.errors:
            assert error.place, table
            assert error.found, table
            assert error.expected, table
            assert error.remedy, str(error)
            assert str(error).isprintable(), table
