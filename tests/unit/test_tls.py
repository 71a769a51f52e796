"""The server's certificate: what can't be used, and what is renewed."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from rowcast.errors import ConfigError
from rowcast.testing.certificates import Authority
from rowcast.tls import Certificate


def shown(server: ssl.SSLContext, client: ssl.SSLContext) -> int:
    """The serial number of the certificate that a client is shown; raises ssl.SSLError when they don't agree."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    other = server.wrap_bio(to_server, to_client, server_side=True)
    done = 0
    while done < 2:
        done = 0
        for side in (one, other):
            try:
                side.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                pass
    return int(str(one.getpeercert()["serialNumber"]), 16)  # type: ignore[index]


def serial(cert: Path) -> int:
    return x509.load_pem_x509_certificate(cert.read_bytes()).serial_number


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_a_client_is_shown_it(authority: Authority) -> None:
    cert, key = authority.issue("server")
    certificate = Certificate(str(cert), str(key))
    assert shown(certificate.context, authority.trust()) == serial(cert)


def test_both_may_stand_in_one_file(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("server")
    both = tmp_path / "both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    assert shown(Certificate(str(both), "").context, authority.trust()) == serial(cert)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_spoken(authority: Authority, version: ssl.TLSVersion) -> None:
    client = authority.trust()
    client.minimum_version = client.maximum_version = version
    cert, key = authority.issue("server")
    assert shown(Certificate(str(cert), str(key)).context, client) == serial(cert)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nothing_older_is_spoken(authority: Authority) -> None:
    client = authority.trust()
    client.set_ciphers("DEFAULT@SECLEVEL=0")
    client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    cert, key = authority.issue("server")
    with pytest.raises(ssl.SSLError, match=r"(?i)version|protocol"):
        shown(Certificate(str(cert), str(key)).context, client)


def test_what_can_not_be_used_is_said(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("server")
    _, other = authority.issue("another")
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("no PEM\n")
    locked = tmp_path / "locked.pem"
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"a passphrase"),
        )
    )
    for files, words in [
        ((tmp_path / "gone.pem", key), "tls_cert: .*gone.pem can't be read: No such file"),
        ((cert, tmp_path / "gone.pem"), "tls_key: .*gone.pem can't be read: No such file"),
        ((nothing, key), "tls_cert: .*nothing.pem holds no certificate in PEM"),
        ((cert, nothing), "tls_key: .*nothing.pem holds no usable private key in PEM"),
        ((cert, other), r"tls_key: the key in .*another.key is not that of the first certificate in .*server.crt"),
        ((cert, locked), "tls_key: the key in .*locked.pem has a passphrase"),
        ((cert, cert), "tls_key: .*server.crt holds no usable private key in PEM"),
    ]:
        with pytest.raises(ConfigError, match=r"^\[server\] " + words):
            Certificate(str(files[0]), str(files[1]))


@pytest.mark.parametrize("together", [False, True])
def test_a_chain_that_is_cut_short_is_no_fault_of_the_key(authority: Authority, tmp_path: Path, together: bool) -> None:
    cert, key = authority.issue("server")
    chain = tmp_path / "chain.pem"
    cut = cert.read_bytes() + authority.path.read_bytes()[:200]
    chain.write_bytes(key.read_bytes() + cut if together else cut)
    with pytest.raises(ConfigError, match=r"tls_cert: a certificate in \S+chain.pem, .* can't be used"):
        Certificate(str(chain), "" if together else str(key))


def test_a_renewed_one_is_taken_over_once_it_is_whole(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    cert, key = authority.issue("server")
    before = serial(cert)
    certificate = Certificate(str(cert), str(key))
    new_cert, new_key = authority.issue("renewed")
    certificate.watch()
    cert.write_bytes(new_cert.read_bytes())
    certificate.watch()  # just changed: perhaps the key is still to come
    assert shown(certificate.context, authority.trust()) == before
    certificate.watch()  # it did not come
    assert shown(certificate.context, authority.trust()) == before
    assert "is not that of the first certificate" in caplog.text
    certificate.watch()
    assert caplog.text.count("is not that of the first certificate") == 1
    key.write_bytes(new_key.read_bytes())
    certificate.watch()
    certificate.watch()
    assert shown(certificate.context, authority.trust()) == serial(new_cert) != before


def test_files_that_are_away_for_a_moment_change_nothing(authority: Authority) -> None:
    cert, key = authority.issue("server")
    certificate = Certificate(str(cert), str(key))
    kept = cert.read_bytes()
    cert.unlink()
    for _ in range(3):
        certificate.watch()
    assert certificate.reload() is not None
    cert.write_bytes(kept)
    for _ in range(3):
        certificate.watch()
    assert shown(certificate.context, authority.trust()) == serial(cert)


def test_a_link_that_leads_elsewhere_is_a_renewal(authority: Authority, tmp_path: Path) -> None:
    """As the files of a Kubernetes secret are replaced."""
    first, second = authority.issue("one"), authority.issue("two")
    links = tmp_path / "tls.crt", tmp_path / "tls.key"
    for link, file in zip(links, first, strict=True):
        link.symlink_to(file)
    certificate = Certificate(str(links[0]), str(links[1]))
    for link, file in zip(links, second, strict=True):
        link.unlink()
        link.symlink_to(file)
    certificate.watch()
    certificate.watch()
    assert shown(certificate.context, authority.trust()) == serial(second[0])
