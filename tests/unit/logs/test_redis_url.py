"""URLs of a Redis: what each form means, and that every other one is refused in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.config import Config
from rowcast.errors import ConfigError
from rowcast.logs.redis_url import RedisUrl, is_redis


def test_one_server() -> None:
    url = RedisUrl.parse("redis://ann:p%40ss@host:7000/3")
    assert (url.kind, url.addresses, url.tls) == ("node", (("host", 7000),), False)
    assert url.options == {"username": "ann", "password": "p@ss", "db": 3}


def test_the_shortest() -> None:
    assert RedisUrl.parse("redis://host") == RedisUrl("node", (("host", 6379),))


def test_a_password_alone() -> None:
    assert RedisUrl.parse("redis://:secret@host").options == {"password": "secret"}


def test_sentinel() -> None:
    url = RedisUrl.parse(
        "redis+sentinel://ann:p@a,b:26380,[::1]:5/my%20master/2?sentinel_password=s&sentinel_username=u"
    )
    assert (url.kind, url.service, url.tls) == ("sentinel", "my master", False)
    assert url.addresses == (("a", 26379), ("b", 26380), ("::1", 5))
    assert url.options == {"username": "ann", "password": "p", "db": 2}
    assert url.sentinel_options == {"username": "u", "password": "s"}


def test_cluster_with_tls() -> None:
    url = RedisUrl.parse("rediss+cluster://a:1,b/?ssl_ca_certs=/ca.pem&ssl_check_hostname=false")
    assert (url.kind, url.addresses, url.tls) == ("cluster", (("a", 1), ("b", 6379)), True)
    assert url.options == {"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False}


def test_tls_is_for_the_sentinels_too() -> None:
    url = RedisUrl.parse("rediss+sentinel://a/m?ssl_ca_certs=/ca.pem")
    assert url.sentinel_options == url.options == {"ssl_ca_certs": "/ca.pem"}


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("http://host", "no such scheme"),
        ("redis:host", "no such scheme"),
        ("redis+tcp://host", "no such scheme"),
        ("redis://", "a host is missing"),
        ("redis://a,b", r"redis\+sentinel:// or redis\+cluster://"),
        ("redis+cluster://a,,b", "between two commas"),
        ("redis://:6379", "before a port"),
        ("redis://host:70000", "is no host:port"),
        ("redis://host:x", "is no host:port"),
        ("redis://::1", "in brackets"),
        ("redis://[::1", "bracket|Invalid IPv6"),
        ("redis://host/one", "no number of a database"),
        ("redis://host/0/1", "no number of a database"),
        ("redis+cluster://host/1", "database 0 only"),
        ("redis+sentinel://host", "name of the primary is missing"),
        ("redis://secret@host", "after a colon"),
        ("redis://:a@b@host", "%40"),
        ("redis://:a#b@host", "%23|host is missing|no host:port"),
        ("redis://host?ssl_ca_certs=/x", "write rediss"),
        ("rediss://host?ssl_ca_cert=/x", "not known; there are ssl_ca_certs"),
        ("rediss://host?ssl_cert_reqs=maybe", "required, optional or none"),
        ("rediss://host?ssl_check_hostname=maybe", "true or false"),
        ("rediss://host?ssl_ca_certs=", "must not be empty"),
        ("redis://host?socket_connect_timeout=-1", "no number of seconds"),
        ("redis://host?sentinel_password=x", r"redis\+sentinel:// only"),
    ],
)
def test_anything_else_is_refused(url: str, what: str) -> None:
    with pytest.raises(ValueError, match=what) as raised:
        RedisUrl.parse(url)
    assert "secret" not in str(raised.value)
    if is_redis(url):
        with pytest.raises(ConfigError, match=r"\[log\] url"):
            Config.from_sections({"log": url})


@given(st.text("redis+cluntl:/@,[]?#&=%a0.\x00 é", max_size=40))
def test_whatever_it_is_it_is_read_or_refused(rest: str) -> None:
    for scheme in ("redis://", "redis+sentinel://", "rediss+cluster://"):
        try:
            url = RedisUrl.parse(scheme + rest)
        except ValueError:
            continue
        assert url.addresses
        assert all(host and 0 < port < 65536 for host, port in url.addresses)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:SECRET/x@host:6379/0",
        "redis://user:SECRET?x@host:6379/0",
        "redis://user:SECRET#x@host",
        "redis://user:1234/SECRET@host/0",
        "redis://user:1234?SECRET@host/0",
        "redis://:SECRET\u2100@host/0",
        "redis://:[SECRET@host/0",
    ],
)
def test_what_is_wrong_is_said_without_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Config.from_sections({"log": url, "auth": "x" * 32})
    assert "%" in str(refused.value), "how to write it"
    assert "SECRET" not in str(refused.value)
