"""Fixtures of the end-to-end tests: each runs on every engine of `kit.ENGINES`, or, where its file
is marked `forms`, on every form of relays."""

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from end_to_end.kit import ENGINES, FORMS, RUNNING, Ends, Gateway, Starter, launch
from end_to_end.wire import Upstream, Wire


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows what its gateways said last."""
    report = yield
    if report.failed:
        for number, gateway in enumerate(RUNNING, 1):
            said = "\n".join(gateway.err.lines[-30:] + gateway.out.lines[-3:])
            report.sections.append((f"what gateway {number} said", said))
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What the fixture `engine` gives."""
    if "engine" in metafunc.fixturenames:
        marked = metafunc.definition.get_closest_marker("forms") is not None
        metafunc.parametrize("engine", FORMS if marked else ENGINES, indirect=True, scope="module")


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> str:
    """The engine that the table demands."""
    return str(request.param)


@pytest.fixture
def start(engine: str, tmp_path: Path) -> Iterator[Starter]:
    """Start a gateway on a table; it ends with the test."""
    yield from _starter(engine, tmp_path)


@pytest.fixture(scope="module")
def start_shared(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Start a gateway on a table; it ends with the module, whose tests share it."""
    yield from _starter(engine, tmp_path_factory.mktemp("gateway"))


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """A listening socket whose connections the test serves itself."""
    with Upstream() as listening:
        yield listening


@pytest.fixture
def ends(gateway: Gateway, upstream: Upstream) -> Iterator[Ends]:
    """Opens sessions on the module's gateway, and closes them after the test."""
    opened = Ends(gateway, upstream)
    yield opened
    opened.close()


def _starter(engine: str, folder: Path) -> Iterator[Starter]:
    with contextlib.ExitStack() as stack:
        count = 0

        def start(table: str, *, files: int = 0) -> Gateway:
            nonlocal count
            count += 1
            place = folder / str(count)
            place.mkdir()
            return stack.enter_context(launch(table, place, engine=engine, files=files))

        yield start


@pytest.fixture
def crowd() -> Iterator[list[Wire]]:
    """Clients that are closed after the test."""
    clients: list[Wire] = []
    yield clients
    for client in clients:
        client.close()
