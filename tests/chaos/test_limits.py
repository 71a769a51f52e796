"""One budget for a client, whichever replica it asks."""

from __future__ import annotations

import contextlib
from typing import Any


async def test_120_requests_over_3_replicas_and_the_121st_is_refused(drill: Any) -> None:
    async with contextlib.AsyncExitStack() as stack:
        replicas = await stack.enter_async_context(drill.replicas(3, '\n[limits]\nrequests = "120/minute"\n'))
        asked = [await stack.enter_async_context(drill.client(url, "ann")) for url in replicas.urls]
        statuses = [(await asked[number % 3].get("/users/me/channels")).status_code for number in range(120)]
        assert statuses == [200] * 120
        for client in asked:
            refused = await client.get("/users/me/channels")
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60
