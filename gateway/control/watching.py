"""Sees that the route table's files say something else than before.

Laws of this file:

- A change is another content (`digest`), not an event of the file system: what an editor, a
  backup or a neighbour does in the same folder is none. Without an event there is a look all the
  same, each `LOOK_MS`: some file systems tell nothing of what another machine did.
- Folders are watched, not files: who replaces a file by rename(2) leaves the watch of the old one
  behind. Links are followed, and every folder in which one of them stands is watched, since a
  Kubernetes volume is changed by another link in the place of `..data`, where the file's own folder
  sees nothing.
- What is half written is waited for: changes count once it has been quiet for `STEP_MS`, at the
  latest after `DEBOUNCE_MS`. A table that is broken all the same changes nothing, and the next
  change is seen.
- It runs in a thread of its own, and tells the loop.

Never: a decision what to do about it.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import watchfiles

from gateway.control.config import digest, table_files

STEP_MS = 200                 # five looks a second are what watching costs
DEBOUNCE_MS = 2000
LINKS_MAX = 40                # as the kernel has it, path_resolution(7)
LOOK_MS = 5000


def watched_folders(path: Path, others: Iterable[Path] = ()) -> list[Path]:
    """Every folder in which something stands that leads to the table's files, or to others."""
    folders: dict[Path, None] = {}
    for start in (path, *_files_or_none(path), *others):
        step = Path(os.path.normpath(start.absolute()))
        for _ in range(LINKS_MAX):
            link = _first_link(step)
            folders[(link or step).parent] = None
            if link is None:
                break
            target = link.parent / link.readlink()
            step = Path(os.path.normpath(target / step.relative_to(link)))
    if path.is_dir():
        folders[path.resolve()] = None
    return [folder for folder in folders if folder.is_dir()]


def _files_or_none(path: Path) -> list[Path]:
    try:
        return table_files(path)
    except OSError:
        return []


def _first_link(path: Path) -> Path | None:
    """The first part of this path that is a symbolic link."""
    return next((part for part in (*reversed(path.parents), path) if part.is_symlink()), None)


class Watch:
    """Calls `changed` in the loop each time the table's files are other than they were.

    `known` is the digest that counts as seen. `failed` is called once with a sentence where the
    files cannot be watched. `others` are files that belong to the table: in its thread. `start`,
    then `stop`.
    """

    def __init__(
        self, path: Path, known: bytes, changed: Callable[[], None], failed: Callable[[str], None],
        others: Callable[[], Collection[Path]] = tuple,
    ) -> None:
        self._path = path
        self._others = others
        self._known = known
        self._changed = changed
        self._failed = failed
        self._stopped = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="watching")

    def start(self) -> None:
        """Watch from here on; what has changed since `known` counts."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """No call comes after this. The thread ends a moment later."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._look()             # of what came while nothing was watched nobody tells
                self._watch_once()
        except Exception as error:  # noqa: BLE001 - inotify's limits, or a mistake of watchfiles
            why = str(error)
            self._tell(lambda: self._failed(why))

    def _watch_once(self) -> None:
        """Until something happens there: afterwards the folders may be others."""
        folders = watched_folders(self._path, self._others())
        if not folders:
            self._look()
            self._stopped.wait(LOOK_MS / 1000)
            return
        watching = watchfiles.watch(
            *folders, watch_filter=None, debounce=DEBOUNCE_MS, step=STEP_MS, recursive=False,
            rust_timeout=LOOK_MS, stop_event=self._stopped, raise_interrupt=False,
            yield_on_timeout=True,
        )
        with contextlib.closing(watching):
            for _ in watching:
                if self._look() or folders != watched_folders(self._path, self._others()):
                    return

    def _look(self) -> bool:
        """True, and told, if the files are other than they were."""
        found = digest(self._path, self._others())
        if found == self._known:
            return False
        self._known = found
        self._tell(self._changed)
        return True

    def _tell(self, call: Callable[[], None]) -> None:
        def tell() -> None:
            if not self._stopped.is_set():
                call()

        assert self._loop is not None
        with contextlib.suppress(RuntimeError):      # the loop is closed: nobody wants to know
            self._loop.call_soon_threadsafe(tell)
