"""What TLS needs from time to time: a warning before a certificate ends, and other keys."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from control.test_certificates import files, table_of
from end_to_end.secure import Folder
from gateway.control import renewing
from gateway.control.certificates import not_after, secured
from gateway.control.renewing import DAY, WARN_DAYS, Renewing
from gateway.control.report import Report
from gateway.control.terms import Terms


class Rig:
    """A supervisor whose one certificate ends in five days, and a clock."""

    def __init__(self, folder: Folder) -> None:
        folder.issue("a", "a.test", days=5)
        table, _ = secured(table_of(files(folder)))
        self.terms = Terms(table, {}, {})
        self.until = not_after((folder.path / "a.crt").read_bytes())
        self.now = 0.0
        self.read, self._written = os.pipe()
        os.set_blocking(self.read, False)
        self.report = Report(output=self._written, errors=self._written)
        self.renewed = asyncio.Event()
        self.renewing = Renewing(self.renew, self, lambda: self.now)

    async def renew(self) -> None:
        self.renewed.set()

    def said(self, left: float) -> str:
        """What a look says so many seconds before the end."""
        self.now = self.until - left
        self.renewing.look()
        try:
            return os.read(self.read, 1 << 16).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        self.report.close()
        os.close(self.read)
        os.close(self._written)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """See `Rig`."""
    made = Rig(Folder(tmp_path))
    yield made
    made.close()


def test_a_certificate_is_warned_of_once_a_day(rig: Rig) -> None:
    """From 21 days ahead, and beyond its end."""
    assert rig.said(WARN_DAYS * DAY + 1) == ""
    first = rig.said(WARN_DAYS * DAY)
    assert "warning a certificate ends soon" in first
    assert 'place="listener 127.0.0.1:8443"' in first
    assert "days=21" in first
    assert rig.said(WARN_DAYS * DAY - 3600) == ""
    assert "days=19" in rig.said((WARN_DAYS - 1) * DAY - 1)
    assert "warning a certificate has ended" in rig.said(-1.0)
    assert rig.said(-2.0) == ""


def test_another_certificate_is_warned_of_at_once(rig: Rig, tmp_path: Path) -> None:
    """What was said of the one before does not count."""
    assert rig.said(DAY)
    folder = Folder(tmp_path)
    folder.issue("b", "a.test", days=2)
    rig.terms = Terms(secured(table_of(files(folder, "b")))[0], {}, {})
    assert "b.crt" in rig.said(DAY)


def test_keys_for_tickets_are_changed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Again and again, as long as it runs."""
    monkeypatch.setattr(renewing, "LOOK", 0.001)
    monkeypatch.setattr(renewing, "ROTATE", 0.002)

    async def story() -> None:
        task = asyncio.get_running_loop().create_task(rig.renewing.run())
        for _ in range(2):
            await asyncio.wait_for(rig.renewed.wait(), 10)
            rig.renewed.clear()
        task.cancel()

    uvloop.run(story())
