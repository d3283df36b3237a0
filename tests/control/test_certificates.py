"""The files of a table's TLS: what is read, what is refused in which words, and what is kept."""

import datetime
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from end_to_end.secure import Folder
from engine.authority import Authority
from gateway.control import vault
from gateway.control.certificates import expiries, names_of, not_after, secured
from gateway.control.tickets import Tickets
from gateway.errors import TableErrors
from gateway.events import Address
from gateway.table import (
    CertificateFiles,
    EndpointEntry,
    Listener,
    ListenerTls,
    Table,
    Upstream,
    UpstreamTls,
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """One good pair, "a"."""
    made = Folder(tmp_path)
    made.issue("a", "A.test", "*.a.test", "IP:127.0.0.1", days=5)
    return made


def files(folder: Folder, name: str = "a", key: str = "") -> CertificateFiles:
    """A pair as the table has it."""
    return CertificateFiles(
        chain=str(folder.path / f"{name}.crt"), key=str(folder.path / f"{key or name}.key")
    )


def table_of(*pairs: CertificateFiles, **more: str) -> Table:
    """A listener with these."""
    tls = ListenerTls(certificates=pairs, **more)
    return Table(listeners=(Listener(address=Address(host="127.0.0.1", port=8443), tls=tls),))


def outward(folder: Folder, **tls: object) -> Table:
    """An upstream with this TLS."""
    entry = EndpointEntry(url="wss://app.test", host="app.test", port=443)
    upstream = Upstream(
        name="app", scheme="wss", entries=(entry, replace(entry, host="two.test")),
        tls=UpstreamTls(**tls),  # type: ignore[arg-type]
    )
    return Table(upstreams={"app": upstream})


def mistakes(table: Table, folder: Folder, last: Table | None = None) -> str:
    """What the table is refused with."""
    with pytest.raises(TableErrors) as refused:
        secured(table, None, last)
    return str(refused.value).replace(str(folder.path), "FOLDER")


# --- What is read ---------------------------------------------------------------------------------


def test_a_listener(folder: Folder) -> None:
    """Chain, key, and the names that a hello may ask for."""
    table, kept = secured(table_of(files(folder), profile="modern"))
    secure = table.listeners[0].secure
    assert secure is not None
    assert not kept
    assert secure.certificates[0].chain == (folder.path / "a.crt").read_bytes()
    assert secure.certificates[0].names == ("a.test", "*.a.test")
    assert (secure.profile, secure.client_certificates, secure.ticket_keys) == ("modern", "off", ())
    assert "PRIVATE" not in repr(table) + repr(secure)


def test_a_listener_that_asks_clients(folder: Folder) -> None:
    """With the CA that signs theirs."""
    table, _ = secured(table_of(
        files(folder), client_certificates="require", client_ca=str(folder.ca)
    ))
    secure = table.listeners[0].secure
    assert secure is not None
    assert secure.client_ca == folder.authority.pem


def test_an_upstream(folder: Folder) -> None:
    """Each endpoint is verified by its own host, unless a name is set."""
    table, _ = secured(outward(folder, ca=str(folder.ca), certificate=files(folder)))
    one, two = (entry.secure for entry in table.upstreams["app"].entries)
    assert one is not None
    assert two is not None
    assert (one.server_name, two.server_name) == ("app.test", "two.test")
    assert one.ca == folder.authority.pem
    assert one.key == (folder.path / "a.key").read_bytes()
    assert one.alpn == ("http/1.1",)
    table, _ = secured(outward(folder, server_name="x.test", verify=False))
    one = table.upstreams["app"].entries[1].secure
    assert one is not None
    assert (one.server_name, one.verify, one.ca) == ("x.test", False, b"")


@pytest.mark.parametrize(("host", "server_name"), [
    ("app.test.", "app.test"), ("10.0.0.1", "10.0.0.1"), ("::1", "::1"), ("", "localhost"),
])
def test_the_name_of_an_endpoint(host: str, server_name: str) -> None:
    """As a certificate has it."""
    entry = EndpointEntry(url="wss://", host=host)
    upstream = Upstream(
        name="app", scheme="wss", entries=(entry,), tls=UpstreamTls(verify=False)
    )
    table, _ = secured(Table(upstreams={"app": upstream}))
    secure = table.upstreams["app"].entries[0].secure
    assert secure is not None
    assert secure.server_name == server_name


def test_a_byte_stream_offers_no_http(folder: Folder) -> None:
    """Who is behind it may speak anything."""
    table = outward(folder)
    upstream = replace(table.upstreams["app"], scheme="tls")
    table, _ = secured(replace(table, upstreams={"app": upstream}))
    secure = table.upstreams["app"].entries[0].secure
    assert secure is not None
    assert secure.alpn == ()


def test_old_certificates_name_themselves_by_their_subject() -> None:
    """Where there are no alternative names."""
    signed = Authority().issue(subject="Old.test")
    assert names_of(x509.load_pem_x509_certificate(signed.chain)) == ("old.test",)


def test_when_certificates_end(folder: Folder) -> None:
    """Those of listeners, and our own toward upstreams."""
    table = replace(
        table_of(files(folder)),
        upstreams=outward(folder, certificate=files(folder)).upstreams,
    )
    filled, _ = secured(table)
    found = [(one.place, Path(one.file).name, one.until) for one in expiries(filled)]
    until = not_after((folder.path / "a.crt").read_bytes())
    assert found == [
        ("listener 127.0.0.1:8443", "a.crt", until), ("upstream app", "a.crt", until),
    ]
    left = until - datetime.datetime.now(datetime.UTC).timestamp()
    assert 4.9 < left / 86400 <= 5


# --- What is refused ------------------------------------------------------------------------------


def damage(folder: Folder, how: str) -> CertificateFiles:
    """A pair that is not good."""
    if how == "missing":
        return files(folder, "nowhere")
    chain, key = folder.path / "a.crt", folder.path / "a.key"
    other = folder.authority.issue("b.test")
    if how == "another's key":
        key.write_bytes(other.key)
    elif how == "no certificate":
        chain.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    elif how == "no key":
        key.write_bytes(other.chain)
    elif how == "turned round":
        chain.write_bytes(folder.authority.pem + chain.read_bytes())
    elif how == "passphrase":
        private = serialization.load_pem_private_key(key.read_bytes(), None)
        key.write_bytes(private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        ))
    elif how == "weak":
        weak = rsa.generate_private_key(65537, 1024)
        folder.write("a", folder.authority.issue("a.test", key=weak))
    return files(folder)


@pytest.mark.parametrize(("how", "words"), [
    ("missing", "chain: found FOLDER/nowhere.crt: no such file or directory, expected a file"),
    ("another's key", "key: found FOLDER/a.key, which is another certificate's, expected the key"),
    ("no certificate", "chain: found FOLDER/a.crt, which has none that can be read"),
    ("no key", "key: found FOLDER/a.key, which has no key that can be read"),
    ("turned round", "chain: found FOLDER/a.crt, where the key's certificate is not the first"),
    ("passphrase", "key: found FOLDER/a.key, which has a passphrase, expected a key without one"),
    ("weak", "chain: found FOLDER/a.crt, which OpenSSL refuses: "),
])
def test_a_pair_that_is_not_good(folder: Folder, how: str, words: str) -> None:
    """Is refused with its place, what was found, and what to do; no key is shown."""
    said = mistakes(table_of(damage(folder, how)), folder)
    assert said.startswith("listener 127.0.0.1:8443, tls, certificates, entry 1, ")
    assert words in said
    assert "PRIVATE" not in said


def test_all_mistakes_are_told_at_once(folder: Folder) -> None:
    """Of listeners and of upstreams, each once."""
    table = replace(
        table_of(files(folder, "x"), files(folder, "y"), client_certificates="require",
                 client_ca=str(folder.path / "z.crt")),
        upstreams=outward(folder, ca=str(folder.path / "a.key")).upstreams,
    )
    said = mistakes(table, folder).splitlines()
    assert [line.partition(": found ")[0] for line in said] == [
        "listener 127.0.0.1:8443, tls, certificates, entry 1, chain",
        "listener 127.0.0.1:8443, tls, certificates, entry 2, chain",
        "listener 127.0.0.1:8443, tls, client_ca",
        "upstream app, tls, ca",
    ]


# --- What is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["another's key", "no certificate", "passphrase", "gone"])
def test_what_was_good_before_stays(folder: Folder, how: str) -> None:
    """And it is said; another listener that never had it is refused all the same."""
    before, _ = secured(table_of(files(folder)))
    if how == "gone":
        (folder.path / "a.key").unlink()
    else:
        damage(folder, how)
    after, kept = secured(table_of(files(folder)), None, before)
    old, new = before.listeners[0].secure, after.listeners[0].secure
    assert vault.alike(old, new)
    assert len(kept) == 1
    assert kept[0].endswith("; what was read before stays in use")
    fresh = files(folder, "a", "b")
    mistakes(table_of(files(folder), fresh), folder, before)


def test_what_was_good_before_stays_toward_upstreams(folder: Folder) -> None:
    """The CA, and our own certificate."""
    table = outward(folder, ca=str(folder.ca), certificate=files(folder))
    before, _ = secured(table)
    folder.ca.write_bytes(b"")
    (folder.path / "a.crt").write_bytes(b"")
    after, kept = secured(table, None, before)
    assert len(kept) == 2
    for old, new in zip(
        before.upstreams["app"].entries, after.upstreams["app"].entries, strict=True
    ):
        assert vault.alike(old.secure, new.secure)


def test_a_pair_that_is_a_listeners_and_an_upstreams_keeps_its_names(folder: Folder) -> None:
    """By which it is chosen."""
    table = replace(
        table_of(files(folder)), upstreams=outward(folder, certificate=files(folder)).upstreams
    )
    before, _ = secured(table)
    (folder.path / "a.crt").write_bytes(b"")
    after, _ = secured(table, None, before)
    assert vault.alike(before.listeners[0].secure, after.listeners[0].secure)


def test_a_renewed_one_is_taken(folder: Folder) -> None:
    """Without a word."""
    before, _ = secured(table_of(files(folder)))
    folder.issue("a", "a.test")
    after, kept = secured(table_of(files(folder)), None, before)
    assert not kept
    assert not vault.alike(before.listeners[0].secure, after.listeners[0].secure)


# --- Tickets --------------------------------------------------------------------------------------


def test_keys_for_tickets(folder: Folder) -> None:
    """80 bytes each, the newest first; none shared by listeners that let in others."""
    tickets = Tickets()
    table = table_of(files(folder))
    strict = replace(table.listeners[0], tls=replace(
        table.listeners[0].tls, client_certificates="require", client_ca=str(folder.ca)  # type: ignore[type-var]
    ))
    other = replace(table.listeners[0], address=Address(host="127.0.0.1", port=9443))
    filled, _ = secured(replace(table, listeners=(*table.listeners, strict, other)), tickets)
    keys = [one.secure.ticket_keys for one in filled.listeners if one.secure is not None]
    assert [[len(key) for key in one] for one in keys] == [[80]] * 3
    assert len({key for one in keys for key in one}) == 3
    again, _ = secured(table, tickets)
    assert again.listeners[0].secure is not None
    assert again.listeners[0].secure.ticket_keys == keys[0]


def test_keys_for_tickets_are_changed(folder: Folder) -> None:
    """The old ones open for a while."""
    made = vault.Vault(tickets=True)
    table, _ = made.fill(table_of(files(folder)))
    seen: list[tuple[bytes, ...]] = []
    for _ in range(4):
        assert table.listeners[0].secure is not None
        seen.append(table.listeners[0].secure.ticket_keys)
        renewed = made.renew(table)
        assert renewed is not None
        table = renewed
    assert [len(one) for one in seen] == [1, 2, 3, 3]
    assert seen[1][1:] == seen[0]
    assert seen[3][1:] == seen[2][:2]
    assert "ticket_keys" not in repr(table.listeners[0].secure)


def test_where_there_are_no_tickets(folder: Folder) -> None:
    """None are made, and nothing is renewed."""
    made = vault.Vault(tickets=False)
    table, _ = made.fill(table_of(files(folder)))
    assert table.listeners[0].secure is not None
    assert table.listeners[0].secure.ticket_keys == ()
    assert made.renew(table) is None
    assert vault.Vault(tickets=True).renew(outward(folder)) is None


def test_a_table_without_tls_needs_nothing() -> None:
    """Neither files nor a word."""
    table = Table(listeners=(Listener(address=Address(host="127.0.0.1", port=1)),))
    assert vault.Vault(tickets=True).fill(table) == (table, [])
    assert vault.files_of(table) == ()
    assert vault.expiries(table) == []


def test_files_that_belong_to_a_table(folder: Folder) -> None:
    """Each once."""
    pair = files(folder)
    table = replace(
        table_of(pair, pair, client_certificates="request", client_ca=str(folder.ca)),
        upstreams=outward(folder, ca=str(folder.ca), certificate=pair).upstreams,
    )
    assert {file.name for file in vault.files_of(table)} == {"a.crt", "a.key", "ca.crt"}
    assert len(vault.files_of(table)) == 3


def test_settings_that_say_the_same_are_used_on(folder: Folder) -> None:
    """What an engine made of them goes on; of others it does not."""
    table = replace(
        table_of(files(folder)), upstreams=outward(folder, ca=str(folder.ca)).upstreams
    )
    old, _ = secured(table)
    new, _ = secured(table)
    used = vault.reused(new, old)
    assert used.listeners[0].secure is old.listeners[0].secure
    assert [one.secure for one in used.upstreams["app"].entries] == [
        one.secure for one in old.upstreams["app"].entries
    ]
    folder.issue("a", "a.test")
    changed, _ = secured(table)
    used = vault.reused(changed, old)
    assert used.listeners[0].secure is changed.listeners[0].secure
    assert not vault.alike(None, old.listeners[0].secure)
    assert vault.alike(None, None)
