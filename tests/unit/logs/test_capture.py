"""From messages of the server to entries: places, skipping, and how far it has been seen."""

from __future__ import annotations

import struct

import pytest

from rowcast.core.change import Change, Relation
from rowcast.core.entry import Entry, Kind
from rowcast.core.position import MINOR_SPACING as SPACE
from rowcast.core.position import Place
from rowcast.errors import DecodeError
from rowcast.logs.capture import Capture
from rowcast.logs.messages import Messages
from rowcast.ports import Draft

SECRET = b"0123456789abcdef"


class Rows:
    """A router that makes one entry of each row of the table `t`, named by its action."""

    def wants(self, relation: Relation) -> bool:
        return relation.table == "t"

    def route(self, change: Change) -> list[Entry]:
        return [Entry(Kind.DATA, change.place, None, topic=change.action)]


def begin(commit_lsn: int) -> bytes:
    return b"B" + struct.pack("!qqI", commit_lsn, 0, 7)


def commit(commit_lsn: int, end_lsn: int) -> bytes:
    return b"C" + struct.pack("!bqqq", 0, commit_lsn, end_lsn, 0)


def relation(oid: int, table: str) -> bytes:
    head = b"R" + struct.pack("!I", oid) + b"public\0" + table.encode() + b"\0d" + struct.pack("!H", 1)
    return head + b"\1id\0" + struct.pack("!Ii", 23, -1)


def insert(oid: int = 1) -> bytes:
    return b"I" + struct.pack("!I", oid) + b"N" + struct.pack("!H", 1) + b"t" + struct.pack("!I", 1) + b"5"


def truncate(*oids: int) -> bytes:
    return b"T" + struct.pack("!Ib", len(oids), 0) + b"".join(struct.pack("!I", oid) for oid in oids)


def message(content: bytes, prefix: str = "rowcast", *, transactional: bool = True) -> bytes:
    flags = struct.pack("!bq", transactional, 0)
    return b"M" + flags + prefix.encode() + b"\0" + struct.pack("!I", len(content)) + content


RELATIONS = [relation(1, "t"), relation(2, "other")]


def capture(position: Place = (0, 0)) -> Capture:
    made = Capture(Rows(), Messages(SECRET))
    made.begin(position)
    return made


def places(entries: list[Entry] | None) -> list[Place]:
    assert entries is not None
    return [entry.place for entry in entries]


def test_a_whole_transaction() -> None:
    reader = capture()
    entries = reader.take([begin(100), *RELATIONS, insert(), insert(), commit(100, 140)])
    assert places(entries) == [(100, SPACE), (100, 2 * SPACE)]
    assert reader.position == (140, 0)
    assert reader.finished == 140


def test_every_published_change_counts_whether_or_not_it_is_wanted() -> None:
    reader = capture()
    other = message(b"x", "other")
    silent = message(b"x", "other", transactional=False)
    entries = reader.take(
        [begin(100), *RELATIONS, insert(2), other, silent, truncate(2, 1), insert(), commit(100, 140)]
    )
    assert [(entry.topic, entry.place) for entry in entries or []] == [
        ("truncate", (100, 4 * SPACE)),
        ("insert", (100, 5 * SPACE)),
    ]


def test_a_transaction_in_pieces() -> None:
    """Within it the position lies above every entry of the last change, and below the next."""
    reader = capture()
    assert reader.take([begin(100), *RELATIONS]) == []
    assert reader.position == (100, SPACE - 1)
    assert places(reader.take([insert()])) == [(100, SPACE)]
    assert reader.position == (100, 2 * SPACE - 1)
    assert reader.take([insert(2)], 90) == []
    assert reader.position == (100, 3 * SPACE - 1)
    assert reader.finished == 0, "the server must keep it until it is whole"
    assert places(reader.take([insert(), commit(100, 140)])) == [(100, 3 * SPACE)]
    assert (reader.position, reader.finished) == ((140, 0), 140)


def test_keepalives_move_on_between_transactions_only() -> None:
    reader = capture((50, 0))
    assert reader.take([], 40) is None
    assert reader.position == (50, 0)
    assert reader.take([], 90) == []
    assert (reader.position, reader.finished) == ((90, 0), 90)
    assert reader.take([], 90) is None
    reader.take([begin(100)])
    assert reader.take([], 95) is None
    assert reader.position[0] == 100


@pytest.mark.parametrize(
    ("position", "kept"),
    [
        ((100, 0), 3),
        ((100, SPACE - 1), 3),
        ((100, SPACE), 2),
        ((100, 2 * SPACE - 1), 2),
        ((100, 3 * SPACE), 0),
        ((140, 0), 0),
    ],
)
def test_what_is_sent_again_is_skipped(position: Place, kept: int) -> None:
    transaction = [begin(100), *RELATIONS, insert(), insert(), insert(), commit(100, 140)]
    whole = places(capture().take(transaction))
    reader = capture(position)
    assert places(reader.take(transaction) or []) == whole[len(whole) - kept :]
    assert reader.position == (140, 0)


def test_a_session_that_was_cut_resumes_at_every_point() -> None:
    """Wherever the cut: both pieces together are the whole, once each."""
    payloads = [begin(100), *RELATIONS, insert(), insert(2), truncate(1), commit(100, 140)]
    payloads += [begin(140), insert(), message(Messages(SECRET).compose(Draft(topic="m"))[1]), commit(140, 180)]
    whole = places(capture().take(payloads))
    assert len(whole) == 4
    for cut in range(len(payloads) + 1):
        reader = capture()
        first = reader.take(payloads[:cut]) or []
        reader.begin(reader.position)
        # The server sends every transaction whose commit is not below the position, from its beginning.
        again = payloads if reader.position[0] <= 100 else [*RELATIONS, *payloads[7:]]
        if reader.position[0] > 140:
            again = []
        second = reader.take(again) or []
        assert places(first + second) == whole, cut
        assert reader.position == (180, 0)


def test_our_messages_are_told_by_their_nonce() -> None:
    seen: list[tuple[str, Place]] = []
    messages = Messages(SECRET)
    reader = Capture(Rows(), messages, lambda nonce, place: seen.append((nonce, place)))
    reader.begin((0, 0))
    nonce, content = messages.compose(Draft(topic="t"))
    entries = reader.take([begin(100), message(b"forged"), message(content), commit(100, 140)])
    assert places(entries) == [(100, 2 * SPACE)]
    assert seen == [(nonce, (100, 2 * SPACE))]
    assert messages.refused == 1


def test_a_malformed_message_leaves_the_position() -> None:
    reader = capture()
    reader.take([begin(100), *RELATIONS, insert(), commit(100, 140)])
    with pytest.raises(DecodeError):
        reader.take([begin(200), insert(), b"?", commit(200, 240)])
    assert (reader.position, reader.finished) == ((140, 0), 140)
