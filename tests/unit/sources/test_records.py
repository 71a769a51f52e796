"""Records of webhooks: what is read from the senders' payloads, and the changes that they become."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.core.routes import Route, Router
from rowcast.errors import BadRequest
from rowcast.sources import debezium, records, sequin
from rowcast.sources.records import Delivery, Record, Shapes, SignedMessage

DATA = Path(__file__).parents[2] / "data"
SAMPLES = sorted(path.relative_to(DATA).as_posix() for path in DATA.glob("*/*.json"))
PARSERS = {"sequin": sequin.parse, "debezium": debezium.parse}
NEEDED = {"public.trades": frozenset({"symbol", "id"})}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


def sample(name: str) -> Any:
    return json.loads((DATA / name).read_text())


def one(name: str) -> Record:
    """The only record of a sample."""
    delivery = PARSERS[name.partition("/")[0]]((DATA / name).read_bytes())
    assert not delivery.refused
    [record] = delivery.records
    assert isinstance(record, Record)
    return record


def parsed(sender: str, body: Any) -> Delivery:
    return PARSERS[sender](json.dumps(body).encode())


def sent(record: Record, topic: str = "t:{symbol}", **options: Any) -> list[tuple[str, Any]]:
    """What a route makes of a record: (topic, event)."""
    router = Router([Route.from_templates("trades", origin="here", topic=topic, **options)])
    entries = router.route(Shapes(NEEDED).change(record))
    assert router.poisoned == 0
    return [(entry.topic, json.loads(entry.body.encode(1 << 20))) for entry in entries]


# Samples


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_is_read(name: str) -> None:
    delivery = PARSERS[name.partition("/")[0]]((DATA / name).read_bytes())
    assert bool(delivery.refused) == (name == "debezium/flattened.json")


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("sequin/insert.json", "insert"),
        ("sequin/update.json", "update"),
        ("sequin/delete.json", "delete"),
        ("sequin/read.json", "read"),
        ("debezium/create.json", "insert"),
        ("debezium/create_with_schema.json", "insert"),
        ("debezium/update.json", "update"),
        ("debezium/delete.json", "delete"),
        ("debezium/read.json", "read"),
    ],
)
def test_a_row_is_sent_as_it_came(name: str, action: str) -> None:
    told = sample(name)
    told = told.get("payload", told)
    row = told.get("record") or told["after"] or told["before"]
    [(topic, event)] = sent(one(name))
    assert topic == "t:AAPL"
    # A bigint that a double can't hold is a string, as it is from the WAL.
    assert event["record"] == row | {"id": "9007199254740993"}
    assert event["action"] == action
    at = "2026-11-24T19:17:34.548348Z" if name.startswith("sequin") else "2025-11-24T19:17:34.548348Z"
    assert event["metadata"] == {"table_schema": "public", "table_name": "trades", "commit_timestamp": at}


def test_numbers_keep_their_digits_and_follow_the_route() -> None:
    body = sample("sequin/insert.json")
    text = json.dumps(body).replace('"ratio": 1.1', '"ratio": 1.10000000000000000000000001')
    [record] = sequin.parse(text.encode()).records
    router = Router([Route.from_templates("trades", origin="here", topic="t:{ratio}:{id}", numeric="number")])
    [entry] = router.route(Shapes({}).change(record))
    assert entry.topic == "t:1.10000000000000000000000001:9007199254740993"
    encoded = entry.body.encode(1 << 20)
    assert b'"ratio":1.10000000000000000000000001' in encoded
    assert b'"id":9007199254740993' in encoded


def test_integers_of_any_length() -> None:
    for number in (0, -5, 2**53 - 1, 2**63 - 1, -(2**63), 10**40):
        body = sample("sequin/insert.json")
        body["record"] = {"symbol": number}
        [record] = parsed("sequin", body).records
        [(topic, event)] = sent(record)
        assert topic == f"t:{number}"
        assert event["record"]["symbol"] == (number if abs(number) < 2**53 else str(number))


def test_an_integer_that_is_too_long_for_python_is_sent_as_it_came() -> None:
    body = sample("sequin/insert.json")
    text = json.dumps(body).replace("9007199254740993", "1" * 5000)
    [record] = sequin.parse(text.encode()).records
    router = Router([Route.from_templates("trades", origin="here", topic="t:{symbol}")])
    [entry] = router.route(Shapes({}).change(record))
    assert b'"id":' + b"1" * 5000 in entry.body.encode(1 << 20)


def test_paths_lead_into_json_values() -> None:
    record = one("sequin/insert.json")
    assert [topic for topic, _ in sent(record, "t:{tags[*]}")] == ["t:a", "t:b"]
    assert [topic for topic, _ in sent(record, "t:{extra.lot.size}")] == ["t:5"]
    assert sent(record, "t:{note}") == []
    assert sent(record, when="{price} = '1'") == []


def test_old_values_are_told_where_they_are_known() -> None:
    [(_, event)] = sent(one("sequin/update.json"))
    assert event["changes"] == {"price": "224.30", "open": False}
    [(_, event)] = sent(one("debezium/update.json"))
    assert event["changes"] == {"price": "224.30"}
    for name in ("sequin/update_without_old_values.json", "debezium/update_by_key.json"):
        [(_, event)] = sent(one(name))
        assert event["changes"] is None
    [(_, event)] = sent(one("debezium/update_unavailable.json"))
    assert "note" not in event["record"]
    assert event["metadata"]["unchanged"] == ["note"]


def test_a_row_that_moves_is_deleted_where_it_was() -> None:
    body = sample("sequin/update.json")
    body["changes"] = {"symbol": "IBM"}
    [record] = parsed("sequin", body).records
    assert [(topic, event["action"], event.get("moved")) for topic, event in sent(record)] == [
        ("t:IBM", "delete", True),
        ("t:AAPL", "update", None),
    ]


def test_a_truncate_sweeps() -> None:
    [(topic, event)] = sent(one("debezium/truncate.json"))
    assert (topic, event["action"], event["record"]) == ("t:", "truncate", None)


def test_a_record_without_a_column_that_the_route_needs_goes_nowhere() -> None:
    body = sample("sequin/insert.json")
    del body["record"]["symbol"]
    [record] = parsed("sequin", body).records
    router = Router([Route.from_templates("trades", origin="here", topic="t:{symbol}")])
    assert router.route(Shapes(NEEDED).change(record)) == []
    [problem] = router.problems
    assert "'symbol'" in problem


def test_relations_are_kept_by_shape_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_SHAPES", 3)
    shapes = Shapes({})
    record = one("sequin/insert.json")
    first = shapes.change(record).relation
    assert shapes.change(record).relation is first
    row = record.new
    assert row is not None
    for number in range(10):
        shapes.change(msgspec.structs.replace(record, new=row | {f"c{number}": msgspec.Raw(b"1")}))
        assert len(shapes._relations) <= 3
    oids = [relation.oid for relation in shapes._relations.values()]
    assert len(set(oids)) == len(oids)
    assert min(oids) >= 1 << 32


# Not taken


@pytest.mark.parametrize("name", ["message", "transaction_begin", "heartbeat", "tombstone_with_schema"])
def test_events_that_are_no_changes_are_ignored(name: str) -> None:
    delivery = debezium.parse((DATA / f"debezium/{name}.json").read_bytes())
    assert (delivery.records, delivery.refused, delivery.ignored) == ([], [], 1)
    assert debezium.parse(b" null ").ignored == 1


@pytest.mark.parametrize(
    ("sender", "change", "words"),
    [
        ("sequin", {"action": "upsert"}, "Invalid enum value 'upsert'"),
        ("sequin", {"record": None}, "$.record"),
        ("sequin", {"metadata": {}}, "table_name"),
        ("sequin", {"metadata": {"table_name": "t", "commit_timestamp": "yesterday"}}, "no time"),
        ("debezium", {"op": "x"}, "Invalid enum value 'x'"),
        ("debezium", {"after": None}, "no after"),
        ("debezium", {"source": {"lsn": 1}}, "names no table"),
        ("debezium", {"source": 3}, "no change event"),
    ],
)
def test_a_bad_record_is_named_and_the_others_are_taken(sender: str, change: dict[str, Any], words: str) -> None:
    good = sample("sequin/insert.json") if sender == "sequin" else sample("debezium/create.json")
    batch = [good, good | change, good]
    delivery = parsed(sender, {"data": batch} if sender == "sequin" else batch)
    assert len(delivery.records) == 2
    [refused] = delivery.refused
    assert refused.index == 1
    assert words in refused.reason


@pytest.mark.parametrize("sender", ["sequin", "debezium"])
@pytest.mark.parametrize("body", [b"", b"3", b'"x"', b"{", b"\xff{}", b"[" * 100_000, b'{"a":' * 100_000])
def test_a_body_that_is_none_of_the_senders_is_refused(sender: str, body: bytes) -> None:
    with pytest.raises(BadRequest, match=r"^the body "):
        PARSERS[sender](body)


def test_a_delivery_is_bounded() -> None:
    with pytest.raises(BadRequest, match="at most 10000"):
        sequin.parse(b"[" + b",".join([b"{}"] * 10_001) + b"]")


def test_a_flattened_event_is_refused_with_the_cure() -> None:
    [refused] = debezium.parse((DATA / "debezium/flattened.json").read_bytes()).refused
    assert "ExtractNewRecordState" in refused.reason


# Keys


def test_a_record_has_the_same_key_each_time_and_another_has_another() -> None:
    keys = []
    for name in SAMPLES:
        first, again = (PARSERS[name.partition("/")[0]]((DATA / name).read_bytes()).records for _ in range(2))
        assert [record.key for record in first] == [record.key for record in again]
        keys.extend(record.key for record in first if name != "sequin/old_version.json")
    assert all(keys)
    assert len(set(keys)) == len(keys)
    assert one("sequin/old_version.json").key == ""


def test_rows_that_share_a_place_in_the_wal_differ() -> None:
    event = sample("debezium/create.json")
    other = event | {"after": event["after"] | {"id": 5}}
    delivery = parsed("debezium", [event, other, event])
    assert len({record.key for record in delivery.records}) == 3
    # With and without its schema, and whenever it is sent, it is one event.
    again = parsed("debezium", {"schema": None, "payload": event | {"ts_ms": 1}})
    assert again.records[0].key == delivery.records[0].key


# Whatever comes


@given(st.binary(max_size=200), st.sampled_from(sorted(PARSERS)))
def test_any_bytes_give_records_or_one_error(body: bytes, sender: str) -> None:
    # Any other error fails the test.
    with contextlib.suppress(BadRequest):
        assert isinstance(PARSERS[sender](body), Delivery)


@given(st.data(), st.sampled_from([name for name in SAMPLES if "schema" not in name]))
def test_samples_with_any_value_anywhere_give_records_that_can_be_routed(data: st.DataObject, name: str) -> None:
    sender = name.partition("/")[0]
    body = sample(name)
    at: Any = body
    for _ in range(4):
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.booleans()):
            at[key] = data.draw(json_values)
            break
        at = at[key]
    delivery = parsed(sender, body)
    router = Router([Route.from_templates("trades", origin="here", topic="t:{symbol}")])
    shapes = Shapes(NEEDED)
    for record in delivery.records:
        if isinstance(record, SignedMessage):
            continue
        for entry in router.route(shapes.change(record)):
            json.loads(entry.body.encode(1 << 20))


@given(st.dictionaries(st.text(min_size=1, max_size=10), json_values, max_size=6))
def test_any_row_arrives_as_it_was_sent(row: dict[str, Any]) -> None:
    body = sample("sequin/insert.json")
    body["record"] = {"symbol": "A"} | {name: value for name, value in row.items() if name != "symbol"}
    [record] = parsed("sequin", body).records
    [(_, event)] = sent(record)
    for name, value in body["record"].items():
        large = isinstance(value, int) and abs(value) >= 2**53
        assert event["record"][name] == (str(value) if large else value)
