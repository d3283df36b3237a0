"""`gateway certs`: what it writes, what it leaves alone, and that it is good for TLS."""

import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from end_to_end.kit import route
from end_to_end.secure import NAMES, Folder
from gateway.control import config
from gateway.control.certificates import secured

FILES = {"ca.crt", "ca.key", "server.crt", "server.key", "client.crt", "client.key"}


def certs(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command, in this folder."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", "certs", *arguments],
        capture_output=True, text=True, timeout=30, cwd=folder, stdin=subprocess.DEVNULL,
    )


def names(file: Path) -> list[str]:
    """Of a certificate."""
    read = x509.load_pem_x509_certificate(file.read_bytes())
    found = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(one.value) for one in found]


def handshake(folder: Path, server_name: str) -> str:
    """The TLS version of a client that trusts the CA and shows its certificate, and a server that
    wants to see one."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(folder / "ca.crt")
    client = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    client.load_cert_chain(folder / "client.crt", folder / "client.key")
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(to_client, to_server, server_hostname=server_name),
            server.wrap_bio(to_server, to_client, server_side=True))
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for end in ends:
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                continue
    return str(ends[0].version())


def test_what_it_makes_is_good(tmp_path: Path) -> None:
    """For localhost, where nothing else is said; keys are nobody else's to read."""
    done = certs(folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "certs"
    assert {file.name for file in folder.iterdir()} == FILES
    for file in FILES:
        assert f"certs/{file}" in done.stdout
        mode = stat.S_IMODE((folder / file).stat().st_mode)
        assert mode & 0o077 == 0 or not file.endswith(".key")
    assert names(folder / "server.crt") == ["localhost", "127.0.0.1", "::1"]
    for server_name in ("localhost", "127.0.0.1"):
        assert handshake(folder, server_name) == "TLSv1.3"
    table = tmp_path / "routes.toml"
    said = done.stdout.splitlines()[-1].strip()
    table.write_text(f'[[listener]]\naddress = "127.0.0.1:0"\n{said}\n'
                     + route("echo", "builtin:echo"))
    secured(config.load(table))


def test_a_ca_is_used_on(tmp_path: Path) -> None:
    """Who trusts it need not do so again; the others are new, for other names and another time."""
    certs(folder=tmp_path)
    folder = tmp_path / "certs"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    done = certs("Chat.test", "*.chat.test", "192.0.2.1", "--days", "5", folder=tmp_path)
    assert done.returncode == 0
    after = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(after) == FILES
    assert {name for name in FILES if before[name] == after[name]} == {"ca.crt", "ca.key"}
    assert names(folder / "server.crt") == ["chat.test", "*.chat.test", "192.0.2.1"]
    assert handshake(folder, "x.chat.test") == "TLSv1.3"


@pytest.mark.parametrize(("arguments", "words", "code"), [
    (["a b"], '"a b"', 1), (["https://a.test"], "expected names", 1), (["--days", "0"], "days", 2),
    (["--out", "/proc/nothing"], "/proc/nothing", 2),
])
def test_what_it_does_not_take(
    tmp_path: Path, arguments: list[str], words: str, code: int
) -> None:
    """In plain words, and without a file."""
    done = certs(*arguments, folder=tmp_path)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["server", "client", "ca"])
def test_what_was_not_made_here_is_not_overwritten(tmp_path: Path, name: str) -> None:
    """Another CA's certificate, or its key, would be gone for ever."""
    own = Folder(tmp_path)
    own.ca.unlink()
    own.issue(name, *NAMES)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    done = certs("--out", str(tmp_path), folder=tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path}/{name}" in done.stderr
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert {file: after[file] for file in before} == before
