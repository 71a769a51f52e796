"""What a real server sends: every built-in type, and the shapes that a table can take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import sql

from rowcast.core import values
from rowcast.core.body import ChangeBody, Form
from rowcast.core.change import UNCHANGED, Change, Column, Message
from rowcast.core.pgoutput import Begin, Commit, Decoder, Event
from rowcast.core.position import MINOR_SPACING

LITERALS = {
    "bool": ["t", "f"],
    "char": ["x", ""],
    "name": ["a name"],
    "bytea": [r"\x00ff0a", ""],
    "int2": ["-32768", "32767"],
    "int4": ["-2147483648", "0"],
    "int8": ["9223372036854775807", "-9223372036854775808", "9007199254740991", "9007199254740992", "-7"],
    "oid": ["4294967295"],
    "xid": ["5"],
    "xid8": ["12345678901234"],
    "cid": ["7"],
    "tid": ["(1,2)"],
    "text": ["", "it's", 'a "quote", a \\ and a {brace}', "NULL", "null", "\u2028\u2029 ü 😀", "\r\n\t\x01", " a "],
    "varchar": ["x,y"],
    "bpchar": ["ab  "],
    "float4": ["1.5", "NaN", "Infinity", "-Infinity", "1e-05", "3.4028235e+38", "0.1", "1e+06", "-0"],
    "float8": ["0.1", "NaN", "Infinity", "-Infinity", "1e-05", "1e+15", "1.7976931348623157e+308", "100", "5e-324"],
    "numeric": ["1.10", "NaN", "Infinity", "-Infinity", "0.0000000001", "-12345678901234567890.123", "1e50", "0"],
    "money": ["1234.56", "-1"],
    "date": ["2026-01-02", "infinity", "-infinity", "0044-03-15 BC", "12026-01-02"],
    "time": ["23:59:59.999999", "24:00:00", "00:00:00"],
    "timetz": ["12:00:00+02", "12:00:00+05:30", "12:00:00-03"],
    "timestamp": ["2026-01-02 03:04:05.678", "infinity", "-infinity", "0044-03-15 01:02:03 BC", "12026-01-02 00:00:00"],
    "timestamptz": ["2026-01-02 03:04:05.678+01", "infinity", "-infinity", "0044-03-15 00:00:00+00 BC", "12026-01-02"],
    "interval": ["1 year 2 mons -3 days 04:05:06.7", "0", "-1 s"],
    "uuid": ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"],
    "json": ['{"a": [1, 2.50, null], "b": "é\\u2028\\"", "a": 9007199254740993}', "[1.0,\n 2]", '"\\ud800"', "1e400"],
    "jsonb": ['{"n": 12345678901234567890.10}', "[]", '"s"', "null", "true", "9007199254740993", "0.0000000001"],
    "jsonpath": ["$.a[*]"],
    "xml": ["<a>b</a>"],
    "point": ["(1,2)"],
    "line": ["{1,2,3}"],
    "lseg": ["[(1,2),(3,4)]"],
    "box": ["(3,4),(1,2)"],
    "path": ["((1,2),(3,4))"],
    "polygon": ["((1,2),(3,4),(5,0))"],
    "circle": ["<(1,2),3>"],
    "inet": ["192.168.0.1/24", "::1"],
    "cidr": ["10.0.0.0/8"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "bit": ["1"],
    "varbit": ["10101"],
    "tsvector": ["'a':1 'b c':2"],
    "tsquery": ["'a' & !'b'"],
    "pg_lsn": ["16/B374D848"],
    "pg_snapshot": ["10:20:10,14"],
    "txid_snapshot": ["10:20:10,14"],
    "int4range": ["[1,5)", "empty", "(,)"],
    "int8range": ["[1,5)"],
    "numrange": ["(1.5,)"],
    "daterange": ["[2026-01-01,infinity)"],
    "tsrange": ['["2026-01-01 00:00:00","2026-01-02 00:00:00")'],
    "tstzrange": ['["2026-01-01 00:00:00+00",)'],
    "int4multirange": ["{[1,3),[5,7)}", "{}"],
    "int8multirange": ["{[1,3)}"],
    "nummultirange": ["{[1.5,3]}"],
    "datemultirange": ["{[2026-01-01,2026-01-03)}"],
    "tsmultirange": ['{["2026-01-01 00:00:00","2026-01-02 00:00:00")}'],
    "tstzmultirange": ['{["2026-01-01 00:00:00+00",)}'],
    "regproc": ["now"],
    "regprocedure": ["abs(numeric)"],
    "regoper": ["||/"],
    "regoperator": ["*(integer,integer)"],
    "regclass": ["pg_class"],
    "regtype": ["integer"],
    "regrole": ["postgres"],
    "regnamespace": ["pg_catalog"],
    "regcollation": ['"C"'],
    "regconfig": ["simple"],
    "regdictionary": ["simple"],
    "refcursor": ["c"],
    "aclitem": ["postgres=r/postgres"],
    "int2vector": ["1 2"],
    "oidvector": ["1 2"],
}

NO_INPUT = {
    *("gtsvector", "pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list"),
    *("pg_brin_bloom_summary", "pg_brin_minmax_multi_summary"),
}
"""Types of the server's own that no user can write a value of."""


TYPE_NAMES = (
    "SELECT t.oid::int, CASE nspname WHEN 'pg_catalog' THEN typname ELSE nspname || '.' || typname END"
    " FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace"
)


class Capture:
    """A publication of tables, a slot, and what the decoder makes of the slot's changes."""

    def __init__(self, url: str) -> None:
        settings = " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in OPTIONS.items())
        self.connection = psycopg.connect(url, autocommit=True, options=settings)
        self.decoder = Decoder()

    def start(self, *statements: str, publish: str = "ALL TABLES", options: str = "") -> None:
        """Run statements, publish, and make the slot: only what is written from now on is captured."""
        self.run(*statements, f"CREATE PUBLICATION p FOR {publish} {options}")
        self.run("SELECT pg_create_logical_replication_slot('types_' || current_database(), 'pgoutput')")

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.connection.execute(statement.encode())

    def events(self) -> list[Event]:
        """What happened since the last call."""
        rows = self.connection.execute(
            "SELECT data FROM pg_logical_slot_get_binary_changes('types_' || current_database(), NULL, NULL,"
            " 'proto_version', '2', 'publication_names', 'p', 'messages', 'true')"
        )
        return [event for (data,) in rows.fetchall() if (event := self.decoder.decode(data)) is not None]

    def changes(self) -> list[Change]:
        changes: list[Change] = []
        for event in self.events():
            if isinstance(event, Change):
                changes.append(event)
            elif isinstance(event, list):
                changes.extend(event)
        return changes

    def select(self, table: str) -> list[dict[str, Any]]:
        """The rows as they are read by SQL in text form, decoded by the same code."""
        cursor = self.connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table)))
        result = cursor.pgresult
        assert result is not None
        names = dict(self.connection.execute(TYPE_NAMES).fetchall())
        columns = [
            Column((result.fname(i) or b"").decode(), result.ftype(i), result.fmod(i), type_name=names[result.ftype(i)])
            for i in range(result.nfields)
        ]
        return [
            {
                column.name: None if (value := result.get_value(number, i)) is None else values.decode(column, value)
                for i, column in enumerate(columns)
            }
            for number in range(result.ntuples)
        ]


OPTIONS = values.SESSION_OPTIONS


@pytest.fixture
def capture(database: str) -> Iterator[Capture]:
    capture = Capture(database)
    yield capture
    capture.connection.close()


def same(one: Any, other: Any) -> bool:
    """Equal, of the same types, with the same digits; NaN is itself."""
    return repr(one) == repr(other)


def sent(change: Change, **options: Any) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(
        ChangeBody(change, "t", Form(change.relation, **options)).encode(1 << 20),
        parse_float=Decimal,
        parse_int=Decimal,
    )
    return event


# Types


def has_input(connection: psycopg.Connection[Any], name: str) -> bool:
    """Whether the server was built with it: xml needs libxml."""
    try:
        connection.execute(sql.SQL("SELECT {}::{}").format(LITERALS[name][0], sql.Identifier("pg_catalog", name)))
    except psycopg.errors.FeatureNotSupported:
        return False
    return True


def with_types(capture: Capture) -> list[str]:
    """A table with a column of each type and one of its array, and a row for each literal."""
    names = [name for name in LITERALS if has_input(capture.connection, name)]
    columns = [f'"{n}" pg_catalog."{n}", "{n}[]" pg_catalog."{n}"[]' for n in names]
    capture.start(f"CREATE TABLE types (id int PRIMARY KEY, {', '.join(columns)})")
    for number in range(max(map(len, LITERALS.values())) + 1):
        row: list[Any] = [number]
        for name in names:
            literals = LITERALS[name]
            scalar = literals[number] if number < len(literals) else None
            # All of them at once, with NULL between; then one alone in two dimensions with lower bounds.
            delimiter = ";" if name == "box" else ","
            quoted = ['"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"' for item in literals]
            array = (
                "{" + delimiter.join([*quoted, "NULL"]) + "}"
                if number
                else f"[0:0][2:3]={{{{{quoted[0]}{delimiter}NULL}}}}"
            )
            row += [scalar, array if number < 2 else "{}" if number == 2 else None]
        marks = ", ".join(["%s"] * len(row))
        capture.connection.execute(f"INSERT INTO types VALUES ({marks})".encode(), row)
    return names


def test_the_list_of_types_is_complete(capture: Capture) -> None:
    known = capture.connection.execute(
        "SELECT typname::text FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace"
        " AND typtype IN ('b', 'r', 'm') AND typname !~ '^_'"
    ).fetchall()
    assert {name for (name,) in known} - NO_INPUT == set(LITERALS)


def test_every_array_type_is_known(capture: Capture) -> None:
    arrays = capture.connection.execute(
        "SELECT a.oid::int, a.typname::text FROM pg_type a JOIN pg_type e ON e.typarray = a.oid"
        " WHERE a.oid < 10000 AND a.typtype = 'b' AND e.typrelid = 0"
    ).fetchall()
    assert len(arrays) > 60
    unknown = [name for oid, name in arrays if values.decode(Column("c", oid), b"{}") != []]
    assert unknown == []


def test_every_type_reads_the_same_from_the_log_and_by_sql(capture: Capture) -> None:
    names = with_types(capture)
    changes = capture.changes()
    rows = capture.select("types")
    assert len(changes) == len(rows) > 8
    for change, row in zip(changes, rows, strict=True):
        assert list(change.row) == list(row)
        different = {name: (change.row[name], row[name]) for name in row if not same(change.row[name], row[name])}
        assert different == {}
    for name in names:
        first, second, third = (change.row[f"{name}[]"] for change in changes[:3])
        scalars = [change.row[name] for change in changes if change.row[name] is not None or name == "jsonb"]
        scalars = scalars[: len(LITERALS[name])]
        assert same(first, [[scalars[0], None]])
        assert same(second, [*scalars, None])
        assert third == []


def test_every_type_is_sent_as_postgres_writes_json(capture: Capture) -> None:
    """`to_json` is the oracle, but for oids, vectors and the forms of time that RFC 3339 wants otherwise."""
    names = [name for name in with_types(capture) if not name.endswith("vector") or name == "tsvector"]
    every = [name for n in names for name in (n, f"{n}[]")]
    query = ", ".join(f'to_json("{name}")::text' for name in every)
    expected = capture.connection.execute(f"SELECT {query} FROM types ORDER BY id".encode()).fetchall()
    for change, row in zip(capture.changes(), expected, strict=True):
        record = sent(change, numeric="number")["record"]
        for name, text in zip(every, row, strict=True):
            said = None if text is None else json.loads(text, parse_float=Decimal, parse_int=Decimal)
            assert same(_as_json(record[name]), _as_postgres(name, said)), name


def _as_json(value: Any) -> Any:
    """Numbers by value: a double may be written 100.0 or 100."""
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    return Decimal(value).normalize() if isinstance(value, (int, Decimal)) and not isinstance(value, bool) else value


def _as_postgres(name: str, value: Any) -> Any:
    if isinstance(value, list) and name.endswith("[]"):
        return [_as_postgres(name, item) for item in value]
    if isinstance(value, str) and name.startswith("time"):
        value = (
            value.removesuffix("+00:00") + "Z" if name.startswith("timestamptz") and value.endswith("+00:00") else value
        )
        if value.endswith("BC") or value.startswith("12026"):
            value = value.replace("T", " ").replace("+00:00", "+00").replace("Z", "+00")
        if name.startswith("timetz") and value[-3] in "+-":
            value += ":00"
    if name in ("oid", "oid[]") and isinstance(value, str):
        value = int(value)
    return _as_json(value)


def test_what_the_values_are(capture: Capture) -> None:
    capture.start(
        "CREATE TABLE trade (id bigint PRIMARY KEY, price numeric(12, 4), ratio float8, at timestamptz, day date,"
        " span interval, meta jsonb, tags text[], grid int[], raw bytea, active bool)"
    )
    capture.run(
        "INSERT INTO trade VALUES (9007199254740993, 187.44, 'NaN', '2026-01-02 03:04:05.678+01', '2026-01-02',"
        " '1 day 2 hours',"
        """ '{"a": 1.50, "b": 9007199254740993}', '{a,"b c",NULL}', '{{1,2},{3,4}}', '\\x00ff', true)"""
    )
    (change,) = capture.changes()
    assert same(
        change.row,
        {
            "id": 9007199254740993,
            "price": Decimal("187.4400"),
            "ratio": float("nan"),
            "at": "2026-01-02T02:04:05.678Z",
            "day": "2026-01-02",
            "span": "P1DT2H",
            "meta": {"a": values.JsonNumber("1.50"), "b": 9007199254740993},
            "tags": ["a", "b c", None],
            "grid": [[1, 2], [3, 4]],
            "raw": r"\x00ff",
            "active": True,
        },
    )
    body = ChangeBody(change, "t", Form(change.relation)).encode(1 << 20)
    assert (
        b'"record":{"id":"9007199254740993","price":"187.4400","ratio":"NaN","at":"2026-01-02T02:04:05.678Z",'
        b'"day":"2026-01-02","span":"P1DT2H","meta":{"a":1.50,"b":9007199254740993},"tags":["a","b c",null],'
        b'"grid":[[1,2],[3,4]],"raw":"\\\\x00ff","active":true}' in body
    )
    body = ChangeBody(change, "t", Form(change.relation, numeric="number")).encode(1 << 20)
    assert b'"record":{"id":9007199254740993,"price":187.4400,"ratio":"NaN",' in body


@pytest.mark.parametrize(
    "value",
    ["0", "1", "100", "-1.5", "0.0001", "0.00001", "123456789012345", "999999999999999", "1e15", "1234567890123456"]
    + ["-1.5e15", "9007199254740993", "1e16", "1e22", "1.7976931348623157e308", "5e-324", "NaN", "-Infinity"],
)
def test_the_text_of_a_double_is_postgres_own(capture: Capture, value: str) -> None:
    """User ids are compared with a column's text by SQL."""
    (text,) = capture.connection.execute("SELECT %s::float8::text", [value]).fetchone() or ()
    assert values.text(values.decode(Column("c", 701), text.encode())) == text


def test_types_of_one_s_own(capture: Capture) -> None:
    capture.start(
        "CREATE SCHEMA other",
        "CREATE TYPE mood AS ENUM ('happy', 'so, so', '{')",
        "CREATE TYPE other.numeric AS ENUM ('many', '1')",
        "CREATE TYPE _mood_of AS ENUM ('{x', '{}')",
        "CREATE DOMAIN positive AS int CHECK (value > 0)",
        "CREATE DOMAIN small AS positive CHECK (value < 100)",
        "CREATE DOMAIN amount AS numeric(10, 2)",
        "CREATE DOMAIN tags AS text[]",
        "CREATE DOMAIN temper AS mood",
        "CREATE TYPE pair AS (a int, b text)",
        "CREATE TYPE span AS RANGE (subtype = float8)",
        "CREATE TABLE own (id small PRIMARY KEY, mood mood, moods mood[], foreign_numeric other.numeric, odd _mood_of,"
        " positive positive, positives positive[], amount amount, tags tags, temper temper, tempers temper[],"
        " pair pair, pairs pair[], span span, spans span[], cardinal information_schema.cardinal_number)",
    )
    capture.run(
        "INSERT INTO own VALUES (1, 'so, so', '{happy,\"so, so\",\"{\",NULL}', 'many', '{x', 5, '{5,6}', 1.5,"
        " '{a,NULL}', '{', '{happy}', '(1,\"x y\")', ARRAY['(1,x)'::pair], '[1,2)', ARRAY['[1,2)'::span], 7)",
        "INSERT INTO own (id, foreign_numeric, odd, moods) VALUES (2, '1', '{}', '[5:6]={happy,NULL}')",
        "UPDATE own SET mood = 'happy' WHERE id = 2",
        "DELETE FROM own WHERE id = 1",
    )
    first, second, update, delete = capture.changes()
    assert first.row == {
        "id": 1,
        "mood": "so, so",
        "moods": ["happy", "so, so", "{", None],
        "foreign_numeric": "many",
        "odd": "{x",
        "positive": 5,
        "positives": ["5", "6"],  # an array of a domain is known by its own name only
        "amount": Decimal("1.50"),
        "tags": ["a", None],
        "temper": "{",
        "tempers": ["happy"],
        "pair": '(1,"x y")',
        "pairs": ["(1,x)"],
        "span": "[1,2)",
        "spans": ["[1,2)"],
        "cardinal": 7,
    }
    assert second.row["foreign_numeric"] == "1"
    assert second.row["moods"] == ["happy", None]
    assert delete.row == {"id": 1}
    (row,) = capture.select("own")
    assert update.row == row


def test_types_of_extensions(capture: Capture) -> None:
    capture.start(
        "CREATE SCHEMA ext",
        "CREATE EXTENSION hstore SCHEMA ext",
        "CREATE EXTENSION citext",
        "CREATE TABLE extended (id int PRIMARY KEY, h ext.hstore, hs ext.hstore[], c citext, cs citext[])",
    )
    capture.run(
        """INSERT INTO extended VALUES (1, 'a=>1, "b c"=>NULL', ARRAY['a=>1'::ext.hstore, NULL], 'AbC', '{A,"b c"}')"""
    )
    (change,) = capture.changes()
    assert change.row == {
        "id": 1,
        "h": '"a"=>"1", "b c"=>NULL',
        "hs": ['"a"=>"1"', None],
        "c": "AbC",
        "cs": ["A", "b c"],
    }
    assert [change.row] == capture.select("extended")
    assert sent(change)["record"] == change.row


# Shapes of tables and changes


def test_a_toasted_value_that_an_update_does_not_touch(capture: Capture) -> None:
    capture.start(
        "CREATE TABLE plain (id int PRIMARY KEY, n int, doc text)",
        "CREATE TABLE whole (id int PRIMARY KEY, n int, doc text)",
        "ALTER TABLE whole REPLICA IDENTITY FULL",
        "ALTER TABLE plain ALTER doc SET STORAGE EXTERNAL",
        "ALTER TABLE whole ALTER doc SET STORAGE EXTERNAL",
    )
    for table in ("plain", "whole"):
        capture.run(
            f"INSERT INTO {table} VALUES (1, 1, repeat('x', 100000))",
            f"UPDATE {table} SET n = 2",
            f"UPDATE {table} SET id = 3",
            f"DELETE FROM {table}",
        )
    changes = capture.changes()
    long = "x" * 100_000

    insert, update, rekey, delete = changes[:4]
    assert insert.row["doc"] == long
    assert update.new == (b"1", b"2", UNCHANGED)
    assert update.row == {"id": 1, "n": 2}
    assert update.old is None
    assert sent(update)["record"] == {"id": 1, "n": 2}
    assert sent(update)["metadata"]["unchanged"] == ["doc"]
    assert sent(update)["changes"] is None
    assert (rekey.old_row, rekey.old_is_key, rekey.unchanged) == ({"id": 1}, True, ["doc"])
    assert delete.row == {"id": 3}

    insert, update, rekey, delete = changes[4:]
    assert update.row == {"id": 1, "n": 2, "doc": long}
    assert (update.unchanged, update.old_is_key) == ([], False)
    assert sent(update)["changes"] == {"n": 1}
    assert sent(rekey)["changes"] == {"id": 1}
    assert delete.row == {"id": 3, "n": 2, "doc": long}


def test_a_table_that_changes_between_its_rows(capture: Capture) -> None:
    capture.start("CREATE TABLE t (id int PRIMARY KEY, a text, b text)")
    capture.run(
        "INSERT INTO t VALUES (1, 'a', 'b')",
        "ALTER TABLE t ADD c int DEFAULT 7",
        "INSERT INTO t VALUES (2, 'a', 'b', 8)",
        "ALTER TABLE t DROP a",
        "INSERT INTO t VALUES (3, 'b', 9)",
        "ALTER TABLE t RENAME b TO beta",
        "INSERT INTO t VALUES (4, 'b', 10)",
        "ALTER TABLE t ALTER c TYPE numeric(5, 1)",
        "INSERT INTO t VALUES (5, 'b', 11)",
        "BEGIN; UPDATE t SET c = 12 WHERE id = 5; ALTER TABLE t ADD d text; UPDATE t SET d = 'x' WHERE id = 5; COMMIT",
        "ALTER TABLE t RENAME TO u",
        "DELETE FROM u WHERE id = 1",
    )
    changes = capture.changes()
    assert [change.row for change in changes] == [
        {"id": 1, "a": "a", "b": "b"},
        {"id": 2, "a": "a", "b": "b", "c": 8},
        {"id": 3, "b": "b", "c": 9},
        {"id": 4, "beta": "b", "c": 10},
        {"id": 5, "beta": "b", "c": Decimal("11.0")},
        {"id": 5, "beta": "b", "c": Decimal("12.0")},
        {"id": 5, "beta": "b", "c": Decimal("12.0"), "d": "x"},
        {"id": 1},
    ]
    assert changes[-1].relation.name == "public.u"
    assert [change.place[1] for change in changes[5:7]] == [MINOR_SPACING, 2 * MINOR_SPACING]


def test_partitions_are_their_root(capture: Capture) -> None:
    capture.start(
        "CREATE TABLE m (id int, day date, n int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)",
        "CREATE TABLE m_1 PARTITION OF m FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')",
        # Its columns stand in another order: the server maps them.
        "CREATE TABLE m_2 (n int, gone text, day date NOT NULL, id int NOT NULL)",
        "ALTER TABLE m_2 DROP gone",
        "ALTER TABLE m ATTACH PARTITION m_2 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')",
        publish="TABLE m",
        options="WITH (publish_via_partition_root = true)",
    )
    capture.run(
        "INSERT INTO m VALUES (1, '2026-01-05', 10), (2, '2026-02-05', 20)",
        "UPDATE m SET n = 21 WHERE id = 2",
        "UPDATE m SET day = '2026-02-06' WHERE id = 1",
        "DELETE FROM m_2 WHERE id = 2",
        "TRUNCATE m",
    )
    changes = capture.changes()
    assert {change.relation.name for change in changes} == {"public.m"}
    assert [(change.action, change.row) for change in changes] == [
        ("insert", {"id": 1, "day": "2026-01-05", "n": 10}),
        ("insert", {"id": 2, "day": "2026-02-05", "n": 20}),
        ("update", {"id": 2, "day": "2026-02-05", "n": 21}),
        # A row that moves to another partition is a delete and an insert.
        ("delete", {"id": 1, "day": "2026-01-05"}),
        ("insert", {"id": 1, "day": "2026-02-06", "n": 10}),
        ("delete", {"id": 2, "day": "2026-02-05"}),
        ("truncate", {}),
    ]


def test_a_truncate_of_two_tables_is_two_changes(capture: Capture) -> None:
    capture.start(
        "CREATE TABLE a (id serial PRIMARY KEY)",
        "CREATE TABLE b (id int PRIMARY KEY REFERENCES a)",
        "CREATE TABLE c (id int PRIMARY KEY)",
    )
    capture.run(
        "BEGIN; INSERT INTO a VALUES (1); TRUNCATE a RESTART IDENTITY CASCADE; INSERT INTO c VALUES (1); COMMIT"
    )
    changes = capture.changes()
    assert [(change.action, change.table) for change in changes[:1]] == [("insert", "a")]
    assert sorted((change.action, change.table) for change in changes[1:3]) == [("truncate", "a"), ("truncate", "b")]
    assert [change.place[1] // MINOR_SPACING for change in changes] == [1, 2, 3, 4]
    assert sent(changes[1])["record"] is None


def test_tables_without_a_primary_key(capture: Capture) -> None:
    capture.start(
        "CREATE TABLE none (a int, b text)",
        "CREATE TABLE whole (a int, b text)",
        "ALTER TABLE whole REPLICA IDENTITY FULL",
        "CREATE TABLE indexed (a int, b text NOT NULL UNIQUE)",
        "ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_b_key",
    )
    for table in ("none", "whole", "indexed"):
        capture.run(f"INSERT INTO {table} VALUES (1, 'x'), (NULL, 'y')")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="replica identity"):
        capture.run("UPDATE none SET a = 2")
    for table in ("whole", "indexed"):
        capture.run(f"UPDATE {table} SET a = 2 WHERE a = 1", f"DELETE FROM {table} WHERE a IS NULL")
    changes = capture.changes()
    assert [change.row for change in changes if change.table == "none"] == [{"a": 1, "b": "x"}, {"a": None, "b": "y"}]
    update, delete = (change for change in changes if change.table == "whole" and change.action != "insert")
    assert (update.old_row, update.row) == ({"a": 1, "b": "x"}, {"a": 2, "b": "x"})
    assert delete.row == {"a": None, "b": "y"}
    assert [column.key for column in delete.relation.columns] == [True, True]
    update, delete = (change for change in changes if change.table == "indexed" and change.action != "insert")
    assert (update.old, delete.row) == (None, {"b": "y"})
    assert [change.relation.identity for change in (update, delete)] == ["i", "i"]


def test_names_of_all_kinds(capture: Capture) -> None:
    capture.start('CREATE SCHEMA "Søme"', 'CREATE TABLE "Søme"."a.b ""c" (id int PRIMARY KEY, "a,ü\u2028" text)')
    capture.run('INSERT INTO "Søme"."a.b ""c" VALUES (1, \'x\')')
    (change,) = capture.changes()
    assert (change.schema, change.table, change.row) == ("Søme", 'a.b "c', {"id": 1, "a,ü\u2028": "x"})
    assert sent(change)["record"] == {"id": 1, "a,ü\u2028": "x"}


def test_messages_count_if_they_are_of_the_transaction(capture: Capture) -> None:
    capture.start("CREATE TABLE t (id int PRIMARY KEY)")
    capture.run(
        "BEGIN; SELECT pg_logical_emit_message(true, 'one', 'first'); INSERT INTO t VALUES (1);"
        " SELECT pg_logical_emit_message(false, 'no', 'at once');"
        " SELECT pg_logical_emit_message(true, 'two', '\\x00ff'::bytea); COMMIT"
    )
    begin, first, insert, second, commit = capture.events()
    assert isinstance(begin, Begin)
    assert isinstance(commit, Commit)
    lsn = begin.commit_lsn
    assert (commit.commit_lsn, commit.commit_time) == (lsn, begin.commit_time)
    assert commit.end_lsn > lsn
    assert isinstance(insert, Change)
    assert first == Message("one", b"first", (lsn, MINOR_SPACING), begin.xid, begin.commit_time)
    assert insert.place == (lsn, 2 * MINOR_SPACING)
    assert (insert.xid, insert.commit_time) == (begin.xid, begin.commit_time)
    assert second == Message("two", b"\x00\xff", (lsn, 3 * MINOR_SPACING), begin.xid, begin.commit_time)


def test_the_time_of_a_commit_is_the_server_s(capture: Capture) -> None:
    capture.start("CREATE TABLE t (id int PRIMARY KEY, at timestamptz)")
    (before,) = (
        capture.connection.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8").fetchone() or ()
    )
    capture.run("INSERT INTO t VALUES (1)")
    (after,) = (
        capture.connection.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8").fetchone() or ()
    )
    (change,) = capture.changes()
    assert before <= change.commit_time <= after
