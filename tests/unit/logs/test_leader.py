from __future__ import annotations

from rowcast.core.position import MINOR_SPACING
from rowcast.logs.leader import _last


def test_the_end_of_a_batch_leaves_room_for_published_entries() -> None:
    assert _last((100, 0)) == (100, 0)
    # A transaction of which nothing has come yet: everything before it has.
    assert _last((100, MINOR_SPACING - 1)) == (100, 0)
    # After its first change, which has the place (100, 1 << 20).
    end = _last((100, 2 * MINOR_SPACING - 1))
    assert (100, MINOR_SPACING) < end < (100, 2 * MINOR_SPACING)
    assert end[1] % MINOR_SPACING == MINOR_SPACING // 2 - 1
