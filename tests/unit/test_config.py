"""The configuration: precedence, errors that point at their place, secrets, defaults."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rowcast.config import Config
from rowcast.core.rules import RowRule, SqlRule
from rowcast.errors import ConfigError

Load = Callable[..., Config]

POSTGRES = '[postgres]\nurl = "postgresql://app:hunter2@db/app"\n'


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ROWCAST_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str = "", **overrides: Any) -> Config:
        path = tmp_path / "rowcast.toml"
        path.write_text(text, encoding="utf-8")
        return Config.load(path, {name.replace("__", "."): value for name, value in overrides.items()})

    return load


def refusal(load: Load, text: str = "", **overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, **overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


CONTRACT = """
[server]
host = "127.0.0.1"
port = 8080
heartbeat = "15s"
retry = "3s"
max_streams_per_user = 20
max_streams = 0
max_event = "256KB"
cors_origins = []
trusted_proxies = []

[postgres]
url = "postgresql://user@host/db"
publication = "rowcast"
slot = "rowcast"
max_held_wal = "1GB"
on_held_wal = "warn"

[log]
url = "redis://host:6379/0"
retention = "10m"
max_entries = 1000
max_bytes = "1MB"
ring_bytes = "128MB"
redo = "30s"
pubsub_bridge = true

[auth]
jwks_url = "https://issuer.example/keys"
algorithms = ["RS256", "ES256", "EdDSA"]
issuer = "issuer"
audience = "app"
user_claim = "sub"
topics_claim = "topics"
query_token = false
cookie = ""

[api]
key = "k"

[limits]
requests = "120/minute"
strict = { "/users/me/channels" = "30/minute" }

[webhooks.sequin]
secret = "w"

[channels]
enabled = true

[[route]]
table = "trades"
topic = "finance:{symbol}"
columns = ["symbol", "price"]
when = "{price} > 0"
key = ["symbol"]
conflate = true
snapshot = true

[[route]]
table = "user_preferences"
user = "{user_id}"

[[subscription]]
table = "rowcast_channels"
user = "{user_id}"
when = "{enabled}"
topics = ["finance:{config.symbols[*]}"]

[[subscription]]
sql = "select 'fantasy:' || league_key from leagues where user_id = %(user)s"
depends_on = { leagues = "{user_id}" }

[cache]
invalidate = ["cache:dashboard:{user}"]
"""


def test_every_section_is_understood(load: Load) -> None:
    config = load(CONTRACT)
    assert (config.server.heartbeat, config.server.retry, config.server.max_event) == (15.0, 3.0, 256 << 10)
    assert config.postgres is not None
    assert (config.postgres.max_held_wal, config.postgres.on_held_wal) == (1 << 30, "warn")
    assert (config.log.url, config.log.retention, config.log.max_bytes) == ("redis://host:6379/0", 600.0, 1 << 20)
    assert (config.log.max_entries, config.log.redo, config.log.pubsub_bridge) == (1000, 30.0, True)
    assert config.limits.strict == {"/users/me/channels": "30/minute"}
    assert config.webhooks.sequin is not None
    assert config.webhooks.sequin.secret.get_secret_value() == "w"
    assert config.cache.invalidate == ["cache:dashboard:{user}"]
    trades, preferences = (section.to_route() for section in config.routes)
    assert (trades.table, trades.conflate, trades.snapshot, trades.key) == ("public.trades", True, True, ("symbol",))
    assert trades.columns == {"symbol", "price"}
    assert preferences.template is not None
    assert preferences.template.text == "user:{user_id}"
    rows, sql = (section.to_rule(index) for index, section in enumerate(config.subscriptions))
    assert isinstance(rows, RowRule)
    assert rows.topics({"user_id": "a", "enabled": True, "config": {"symbols": ["X"]}}) == ["finance:X"]
    assert isinstance(sql, SqlRule)
    assert sql.depends_on == {"public.leagues": "user_id"}


def test_nothing_at_all_is_a_configuration(load: Load) -> None:
    for config in (load(), Config.load(), Config.load(None, {}), Config.from_sections({})):
        assert config.postgres is None
        assert (config.server.host, config.server.port, config.server.envelope) == ("127.0.0.1", 8080, "rowcast")
        assert (config.log.max_bytes, config.log.ring_bytes) == (256 << 20, 128 << 20)
        assert (config.auth.user_claim, config.auth.topics_claim, config.auth.leeway) == ("sub", "topics", 0.0)
        assert config.auth.algorithms is None


def test_the_log_is_the_wal_where_there_is_a_postgres(load: Load) -> None:
    assert load().log.url == load().log_url == "memory:"
    assert load(POSTGRES).log.url == "postgres:"
    assert load(POSTGRES + '[log]\nurl = "memory:"').log.url == "memory:"
    assert load(postgres__url="postgresql://db").log.url == "postgres:"


# Precedence


def test_a_flag_goes_before_the_environment_and_that_before_the_file(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "[server]\nport = 1\nname = 'file'\n"
    assert load(text).server.port == 1
    monkeypatch.setenv("ROWCAST_SERVER_PORT", "2")
    assert load(text).server.port == 2
    assert load(text, server__port=3).server.port == 3
    assert load(text, server__port=None).server.port == 2
    assert load(text).server.name == "file"
    assert load().server.port == 2


@pytest.mark.parametrize(
    ("variable", "value", "read", "expected"),
    [
        ("ROWCAST_SERVER_HOST", "::", lambda c: c.server.host, "::"),
        (
            "ROWCAST_SERVER_CORS_ORIGINS",
            "https://a, https://b",
            lambda c: c.server.cors_origins,
            ["https://a", "https://b"],
        ),
        ("ROWCAST_SERVER_MAX_EVENT", "1MB", lambda c: c.server.max_event, 1 << 20),
        ("ROWCAST_POSTGRES_URL", "postgresql://db", lambda c: c.postgres.url, "postgresql://db"),
        ("ROWCAST_LOG_URL", "memory:", lambda c: c.log.url, "memory:"),
        ("ROWCAST_LOG_MAX_ENTRIES", "7", lambda c: c.log.max_entries, 7),
        ("ROWCAST_AUTH_SECRET", "s", lambda c: c.auth.secret.get_secret_value(), "s"),
        ("ROWCAST_AUTH_QUERY_TOKEN", "true", lambda c: c.auth.query_token, True),
        ("ROWCAST_AUTH_ALGORITHMS", "RS256,ES256", lambda c: c.auth.algorithms, ["RS256", "ES256"]),
        ("ROWCAST_API_KEY", "k", lambda c: c.api.key.get_secret_value(), "k"),
        ("ROWCAST_CHANNELS_ENABLED", "false", lambda c: c.channels.enabled, False),
        ("ROWCAST_WEBHOOKS_SEQUIN_SECRET", "w", lambda c: c.webhooks.sequin.secret.get_secret_value(), "w"),
    ],
)
def test_options_have_environment_variables(
    load: Load, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, read: Callable[[Config], Any], expected: Any
) -> None:
    monkeypatch.setenv(variable, value)
    assert read(load()) == expected


def test_an_empty_variable_is_not_set_and_other_variables_are_not_ours(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWCAST_API_KEY", "")
    monkeypatch.setenv("ROWCAST_LOG_LEVEL", "debug")
    monkeypatch.setenv("ROWCAST_ROUTE", "x")
    config = load("[api]\nkey = 'k'")
    assert config.api.key is not None
    assert config.api.key.get_secret_value() == "k"


def test_errors_name_the_variable_or_the_flag(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[server]\nport = 1\n"
    assert refusal(load, text, server__port="x").startswith("--port: [server] port must be a valid integer")
    assert refusal(load, text, server__prot=1) == "--prot: [server] prot is not known; did you mean 'port'?"
    assert refusal(load, log__url="postgres:").startswith('--log: [log] url "postgres:" needs a [postgres] section')
    assert refusal(load, server__max_event="big").startswith("--max-event: [server] max_event: 'big' is no size")
    monkeypatch.setenv("ROWCAST_SERVER_PORT", "x")
    assert refusal(load, text).startswith("ROWCAST_SERVER_PORT: [server] port must be a valid integer")
    assert load(text, server__port=3).server.port == 3


# Errors in the file

ROUTE = "[[route]]\ntable = 'x'\n"
RULE = "[[subscription]]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\n\nprot = 3\n", "3: [server] prot is not known; did you mean 'port'?"),
        ("[server]\nzzz = 3\n", "2: [server] zzz is not known"),
        ("\n[sever]\nport = 3\n", "2: [sever] is not known; did you mean 'server'?"),
        ("[[routes]]\n", "1: [routes] is not known; did you mean 'route'?"),
        ("[webhooks.sequim]\n", "1: [webhooks] sequim is not known; did you mean 'sequin'?"),
        ("[server]\nport = 70000\n", "2: [server] port must be less than or equal to 65535"),
        ("[server]\nport = true\n", "2: [server] port: true is no number"),
        ("[server]\nheartbeat = 0\n", "2: [server] heartbeat must be greater than 0"),
        ("[server]\nenvelope = 'x'\n", "2: [server] envelope must be 'rowcast' or 'sequin'"),
        ("[server]\ncors_origins = ['a',\n 5]\n", "3: [server] cors_origins must be a valid string"),
        ("[postgres]\nslot = 'x'\n", "1: [postgres] url is missing"),
        ("[postgres]\nurl = ''\n", "2: [postgres] url must not be empty"),
        ("postgres = 'postgresql://db'\n", "1: [postgres] must be a table of options"),
        ("[log]\nretention = 'soon'\n", "2: [log] retention: 'soon' is no duration; write it like"),
        ("[log]\nurl = 'kafka:'\n", '2: [log] url: there is no such log; there are "memory:", "postgres:"'),
        ("[log]\nurl = 'postgres:'\n", '2: [log] url "postgres:" needs a [postgres] section with url'),
        ("[auth]\nsecret = ''\n", "2: [auth] secret must not be empty"),
        ("[api]\nkey = 5\n", "2: [api] key must be a valid string"),
        ("[auth]\nalgorithms = []\n", "2: [auth] algorithms must not be empty"),
        ("a = 1\nb =\n", "2: not valid TOML: Invalid value"),
        ("[route]\ntable = 'x'\n", "1: [route] must be written [[route]]: there may be several"),
        ("subscription = [1]\n", "1: [subscription] must be tables of options"),
        ("[[route]]\ntopic = 'a'\n", "1: [[route]] table is missing"),
        (ROUTE + "topc = 'a'\n", "3: [[route]] topc is not known; did you mean 'topic'?"),
        (ROUTE + "topic = 'a'\norigin = 'b'\n", "4: [[route]] origin is not known"),
        (ROUTE + "topic = 'a'\nkey = []\n", "4: [[route]] key must not be empty"),
        (
            ROUTE + "topic = 'a'\nnumeric = 'text'\n",
            "4: [[route]] numeric must be 'string' or 'number'",
        ),
        ("\n[[route]]\ntable = 'x'\n", "2: a route has either topic or user"),
        (ROUTE + "\ntopic = 'a:{b'\n", "4: { without } in 'a:{b', column 3"),
        (ROUTE + "user = '{b|c}'\n", "3: no filter 'c'"),
        (
            ROUTE + "topic = 'a'\nwhen = '{b} >'\n",
            "4: in the condition '{b} >', column 6: expected a value",
        ),
        (RULE, "1: a subscription needs table, user, topics; or else sql and depends_on"),
        (RULE + "table = 'x'\ntopics = ['a']\n", "1: a subscription needs user"),
        (RULE + "table = 'x'\nuser = '{u}'\ntopics = []\n", "4: [[subscription]] topics must not be empty"),
        (RULE + "table = 'x'\nuser = 'u'\ntopics = ['a']\n", "3: 'u' must name one column and nothing else"),
        (RULE + "table = 'x'\nuser = '{u}'\ntopics = ['a',\n'{']\n", "4: { without } in '{'"),
        (RULE + "table = 'x'\nsql = '%(user)s'\n", "3: a subscription is either of rows"),
        (RULE + "when = '{a}'\ndepends_on = {}\n", "3: a subscription is either of rows"),
        (RULE + "depends_on = {}\n", "1: a subscription needs table, user, topics; or else sql"),
        (
            RULE + "sql = 'select 1'\ndepends_on = {}\n",
            "2: the sql of a subscription must use the parameter",
        ),
        (RULE + "sql = 'select %(user)s'\n", "1: a subscription by sql needs depends_on"),
        (
            RULE + "sql = \"a like 'x%' %(user)s\"\ndepends_on = {}\n",
            "2: in the sql of a subscription, a % ",
        ),
        (
            RULE + "sql = '%(user)s'\ndepends_on = {a = 'b'}\n",
            "3: 'b' must name one column and nothing else",
        ),
    ],
)
def test_errors_begin_with_file_and_line(load: Load, text: str, message: str) -> None:
    assert refusal(load, text).startswith(f"rowcast.toml:{message}")


def test_sections_remember_where_they_stand(load: Load) -> None:
    config = load(CONTRACT)
    lines = CONTRACT.split("\n")
    assert [lines[int(route.origin.rpartition(":")[2]) - 1] for route in config.routes] == ["[[route]]"] * 2
    assert config.routes[0].origin.startswith("rowcast.toml:")
    assert lines[int(config.subscriptions[1].at("sql").rpartition(":")[2]) - 1].startswith("sql = ")
    assert config.subscriptions[1].at("topics") == config.subscriptions[1].origin
    assert config.routes[1].to_route().origin == config.routes[1].origin


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(ConfigError, match=r"none\.toml: there is no such file in .*; name your rowcast\.toml"):
        Config.load(missing)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"# \xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.toml: is not UTF-8 text"):
        Config.load(latin)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbf[server]\nport = 5\n")
    assert Config.load(path).server.port == 5


# Secrets


def test_secrets_are_never_printed(load: Load) -> None:
    text = POSTGRES + "[auth]\nsecret = 'hunter2'\n[api]\nkey = 'hunter2'\n[webhooks.sequin]\nsecret = 'hunter2'\n"
    config = load(text + "[log]\nurl = 'redis://:hunter2@host'\n")
    assert "hunter2" not in repr(config)
    assert "hunter2" not in str(config)
    assert "hunter2" not in refusal(load, "[log]\nurl = 'hunter2://'\n")
    assert "hunter2" not in refusal(load, "[auth]\nsecret = ['hunter2']\n")


def test_logical_messages_are_signed_by_the_api_key_else_the_secret(load: Load) -> None:
    assert load("[auth]\nsecret = 's'\n[api]\nkey = 'k'\n").signing_secret == b"k"
    assert load("[auth]\nsecret = 's'\n").signing_secret == b"s"
    assert load().signing_secret is None


def test_tokens_need_a_key_only_when_something_is_served(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"set \[auth\] secret .* or jwks_url"):
        load().require_auth()
    load("[auth]\nsecret = 's'\n").require_auth()
    load("[auth]\njwks_url = 'https://issuer/keys'\n").require_auth()


# From Python


def test_sections_from_python_may_be_short() -> None:
    config = Config.from_sections(
        {
            "postgres": "postgresql://db",
            "log": "memory:",
            "auth": "s",
            "api": {"key": "k"},
            "server": {"port": 9, "cors_origins": ("https://a",)},
            "limits": None,
            "route": [{"table": "t", "topic": "a"}],
        }
    )
    assert config.postgres is not None
    assert (config.postgres.url, config.log.url, config.server.port) == ("postgresql://db", "memory:", 9)
    assert config.auth.secret is not None
    assert config.server.cors_origins == ["https://a"]
    assert config.routes[0].origin == "Rowcast(…): route 1"


def test_sections_from_python_do_not_look_at_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROWCAST_SERVER_PORT", "5")
    assert Config.from_sections({}).server.port == 8080


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"server": 5}, "Rowcast(…): [server] must be a table of options"),
        ({"sever": {}}, "Rowcast(…): [sever] is not known; did you mean 'server'?"),
        ({"route": [{"table": "t"}]}, "Rowcast(…): route 1: a route has either topic or user"),
        ({"subscription": [{"table": "t"}]}, "Rowcast(…): subscription 1: a subscription needs user, topics"),
    ],
)
def test_errors_from_python_name_the_section(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_sections(sections)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:SECRET/x@host/name",
        "postgresql://user:SECRET x@host/name",
        "postgresql://user:SECRET%zz@host/name",
        "postgresql//user:SECRET@host/name",
        "host=h password=x SECRET",
    ],
)
def test_a_database_url_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="%2F") as refused:
        Config.from_sections({"postgres": url})
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%2Fq@[::1]:5432/d",
        "postgres://a:1,b:2/d?target_session_attrs=any",
        "postgresql:///d",
        "dbname=d",
    ],
)
def test_a_database_url_of_any_form_is_taken(url: str) -> None:
    assert Config.from_sections({"postgres": url}).postgres is not None
