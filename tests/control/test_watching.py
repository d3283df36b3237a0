"""Watching a table's files: other content is a change, however it came there; nothing else is."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest
import uvloop

from control.volume import config_map
from gateway.control import watching
from gateway.control.config import digest
from gateway.control.watching import Watch, watched_folders

LONG = 20.0                   # seconds that a change may take to be seen on a busy machine


class Seen:
    """A watch in this loop, and the changes that it told of."""

    def __init__(self, path: Path, others: list[Path]) -> None:
        self._news = asyncio.Event()
        self.failures: list[str] = []
        self.watch = Watch(
            path, digest(path, others), self._news.set, self.failures.append, lambda: others
        )

    async def change(self) -> None:
        """Wait for the next one."""
        await asyncio.wait_for(self._news.wait(), LONG)
        self._news.clear()

    @property
    def is_quiet(self) -> bool:
        """True while none came."""
        return not self._news.is_set()


def watched(
    path: Path, story: Callable[[Seen], Awaitable[None]], others: list[Path] | None = None
) -> None:
    """Tell the story while this is watched."""

    async def run() -> None:
        seen = Seen(path, others if others is not None else [])
        seen.watch.start()
        try:
            await story(seen)
        finally:
            seen.watch.stop()
        assert not seen.failures

    uvloop.run(run())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test has no two seconds for a flood to end."""
    monkeypatch.setattr(watching, "STEP_MS", 50)
    monkeypatch.setattr(watching, "LOOK_MS", 500)


def replaced(path: Path, text: str) -> None:
    """Write a file as careful editors do."""
    draft = path.with_name("draft")
    draft.write_text(text)
    draft.rename(path)


def test_a_file_that_is_written_and_replaced(tmp_path: Path) -> None:
    """In its place, and by rename, again and again."""
    path = tmp_path / "routes.toml"
    path.write_text("one")

    async def story(seen: Seen) -> None:
        path.write_text("two")
        await seen.change()
        for text in ("three", "four"):
            replaced(path, text)
            await seen.change()

    watched(path, story)


def test_a_config_map(tmp_path: Path) -> None:
    """Another link in the place of `..data` is a change, each time."""
    write = config_map(tmp_path, "one")

    async def story(seen: Seen) -> None:
        for text in ("two", "three"):
            write(text)
            await seen.change()

    watched(tmp_path / "routes.toml", story)


def test_a_link_into_a_config_map(tmp_path: Path) -> None:
    """Also where the table's own name is in another folder."""
    (tmp_path / "volume").mkdir()
    write = config_map(tmp_path / "volume", "one")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "routes.toml").symlink_to("../volume/routes.toml")

    async def story(seen: Seen) -> None:
        write("two")
        await seen.change()

    watched(tmp_path / "etc" / "routes.toml", story)


def test_a_folder(tmp_path: Path) -> None:
    """A file more, one less, and other content in one; a folder that is a link."""
    real = tmp_path / "real"
    real.mkdir()
    (real / "1.toml").write_text("one")
    (tmp_path / "link").symlink_to("real")

    async def story(seen: Seen) -> None:
        (real / "2.toml").write_text("two")
        await seen.change()
        (real / "1.toml").unlink()
        await seen.change()
        replaced(real / "2.toml", "three")
        await seen.change()

    watched(tmp_path / "link", story)


def test_what_is_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour's file, the same content written again: the first news is the real change."""
    path = tmp_path / "routes.toml"
    path.write_text("one")

    async def story(seen: Seen) -> None:
        (tmp_path / "other").write_text("x")
        replaced(path, "one")
        looked = asyncio.Event()
        loop = asyncio.get_running_loop()

        def noted(of: Path, others: Iterable[Path]) -> bytes:
            found = digest(of, others)
            loop.call_soon_threadsafe(looked.set)
            return found

        monkeypatch.setattr(watching, "digest", noted)
        await asyncio.wait_for(looked.wait(), LONG)
        assert seen.is_quiet
        path.write_text("two")
        await seen.change()

    watched(path, story)


def test_files_that_belong_to_the_table(tmp_path: Path) -> None:
    """A certificate is one, wherever it lies; what they are is asked anew each time."""
    folder = tmp_path / "certs"
    folder.mkdir()
    path, chain = tmp_path / "routes.toml", folder / "a.crt"
    path.write_text("one")
    chain.write_text("old")
    others: list[Path] = [chain]

    async def story(seen: Seen) -> None:
        replaced(chain, "new")
        await seen.change()
        (folder / "b.crt").write_text("another")
        others.append(folder / "b.crt")
        await seen.change()
        replaced(folder / "b.crt", "its successor")
        await seen.change()

    watched(path, story, others)


def test_a_file_that_goes_and_comes_back(tmp_path: Path) -> None:
    """Both are changes, also if its folder goes with it."""
    folder = tmp_path / "etc"
    folder.mkdir()
    path = folder / "routes.toml"
    path.write_text("one")

    async def story(seen: Seen) -> None:
        path.unlink()
        folder.rmdir()
        await seen.change()
        folder.mkdir()
        path.write_text("one")
        await seen.change()

    watched(path, story)


def test_what_was_changed_before_the_watch_counts(tmp_path: Path) -> None:
    """Nothing falls between the reading of a table and the watching."""
    path = tmp_path / "routes.toml"
    path.write_text("one")

    async def run() -> None:
        seen = Seen(path, [])
        path.write_text("two")
        seen.watch.start()
        await seen.change()
        seen.watch.stop()

    uvloop.run(run())


def test_why_it_cannot_be_watched_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, as a sentence; the thread ends."""

    def refuse(*_: object, **__: object) -> object:
        raise OSError(24, "inotify's limit is reached")

    monkeypatch.setattr("watchfiles.watch", refuse)

    async def run() -> None:
        told = asyncio.Event()
        failures: list[str] = []

        def failed(why: str) -> None:
            failures.append(why)
            told.set()

        Watch(tmp_path, b"", lambda: None, failed).start()
        await asyncio.wait_for(told.wait(), LONG)
        assert failures == ["[Errno 24] inotify's limit is reached"]

    uvloop.run(run())


def test_folders_on_the_way(tmp_path: Path) -> None:
    """Of every link, and of what it leads to; a ring of links ends, too."""
    config_map(tmp_path, "one")
    assert watched_folders(tmp_path / "routes.toml") == [tmp_path, tmp_path / "..version_1"]
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert watched_folders(tmp_path / "a") == [tmp_path]


def test_digests(tmp_path: Path) -> None:
    """Content, names and what is missing all count."""
    path = tmp_path / "a.toml"
    missing = digest(path)
    path.write_text("one")
    one = digest(path)
    path.write_text("two")
    two = digest(path)
    folder = digest(tmp_path)
    path.rename(tmp_path / "b.toml")
    assert folder == two
    assert len({missing, one, two, digest(tmp_path)}) == 4
    assert digest(path) == missing
    (tmp_path / "c.toml").symlink_to("nowhere")
    assert digest(tmp_path) not in (folder, one)
