"""Drafts become entries: the same in every log that keeps entries itself."""

from __future__ import annotations

from rowcast.core.body import body_of
from rowcast.core.entry import Control, Entry, Kind
from rowcast.core.position import Place
from rowcast.ports import Draft


def entry_of(draft: Draft, place: Place, now: float) -> Entry:
    """What a draft is at a place. `now` is the Unix time in seconds at which it is appended."""
    time_us = round(now * 1e6)
    if draft.control is not None:
        return Entry(Kind.CONTROL, place, Control(draft.control, draft.user, draft.at or now), time=time_us)
    return Entry(
        Kind.SWEEP if draft.form == "sweep" else Kind.DATA,
        place,
        body_of(draft.form, draft.topic, draft.data, draft.key, draft.trace),
        topic=draft.topic,
        key=draft.key,
        event=draft.event,
        time=time_us,
        interval=draft.interval,
    )
