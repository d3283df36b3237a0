"""A wheel with the compiled parts, built here, installed and run where there is no compiler.

Built once for all tests, from the sources alone; without a compiler `test_package.py` says it all.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from end_to_end import kit
from end_to_end.kit import head, launch, route
from end_to_end.wire import BINARY, Upstream, frame
from gateway.control.parts import PARTS, RELAY

ROOT = Path(__file__).resolve().parents[2]
FILES = ["pyproject.toml", "setup.py", "README.md", "LICENSE"]
WRITTEN = {".py", ".pyi", ".pyx", ".pxd", ".html", ".typed"}
MEBIBYTE = 1024 * 1024

pytestmark = [
    pytest.mark.timeout(600),          # it compiles everything
    pytest.mark.skipif(
        bool(RELAY.why_missing()) or not shutil.which("cc"), reason="cc is not installed"
    ),
]


def source_of(folder: Path) -> Path:
    """A copy of the sources, with nothing that was made of them."""
    source = folder / "source"
    made = shutil.ignore_patterns("*.so", "*.c", "__pycache__")
    shutil.copytree(ROOT / "gateway", source / "gateway", ignore=made)
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    return source


def written() -> set[str]:
    """Every file of the package that somebody wrote."""
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / "gateway").rglob("*")
        if path.suffix in WRITTEN
    }


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run to the end; what it printed."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `pip wheel .` builds it."""
    source = source_of(tmp_path_factory.mktemp("wheel"))
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps",
        "--no-build-isolation", "--wheel-dir", "dist", ".", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it; what it depends on is taken from ours."""
    place = tmp_path_factory.mktemp("fresh")
    venv.create(place, with_pip=False, symlinks=True)
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python",
        place / "bin" / "python", "install", "--no-deps", "--no-index", wheel, cwd=place)
    (packages,) = (place / "lib").glob("python*/site-packages")
    (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place


@pytest.fixture
def no_compiler(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment's programs are all that is on PATH."""
    monkeypatch.setenv("PATH", str(installed / "bin"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert not any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    return installed


def test_the_wheel_has_what_runs_and_what_is_read(wheel: Path) -> None:
    """Compiled parts, Python, types, the page, and the sources of what is compiled."""
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {module for part in PARTS if not part.why_missing() for module in part.modules}
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert {f"gateway/engine/{module}{suffix}" for module in modules} <= names
    assert written() <= names
    assert not any(name.startswith(("tests", "tools")) for name in names)


def test_it_is_loaded_from_where_it_was_installed(no_compiler: Path) -> None:
    script = "import gateway.engine.relay_loop as module; print(module.__file__)"
    told = run(no_compiler / "bin" / "python", "-c", script, cwd=no_compiler)
    assert told.startswith(str(no_compiler))


def test_the_doctor_finds_the_compiled_parts(no_compiler: Path) -> None:
    told = run(no_compiler / "bin" / "gateway", "doctor", cwd=no_compiler)
    assert "relay is here" in told
    assert "relays are compiled" in told


def test_it_relays_and_splices(
    no_compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installed command serves; a large message is spliced both ways."""
    monkeypatch.setattr(kit, "COMMAND", [str(no_compiler / "bin" / "gateway")])
    up, down = frame(BINARY, bytes(MEBIBYTE)), frame(BINARY, bytes(MEBIBYTE), masked=False)
    with Upstream() as upstream, launch(head() + route("ws", upstream.url("ws")), tmp_path) as one:
        client, service = kit.open_ws(one, upstream)
        with client, service:
            for _ in range(3):
                with client.sending(up):
                    assert service.exactly(len(up)) == up
                with service.sending(down):
                    assert client.exactly(len(down)) == down
        record = one.record(route="ws")
        assert record["from_client"]["spliced"] > 2 * MEBIBYTE
        assert record["from_upstream"]["spliced"] > 2 * MEBIBYTE


def test_the_sources_are_packed_whole(tmp_path: Path) -> None:
    """What a source archive has is enough to build all of it: every file but what was made."""
    source = source_of(tmp_path)
    run(sys.executable, "setup.py", "--quiet", "sdist", cwd=source)
    (archive,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert written() | set(FILES) <= names
