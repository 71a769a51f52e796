"""The writer: replays the recorded prices into Postgres, one committed UPDATE at a time.

It is an ordinary client of the database and knows nothing of Rowcast, as an application would.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Sequence

import psycopg

from rowcast.demo.market import HAND, Series

SCHEMA = """
CREATE TABLE quotes (
    symbol      text PRIMARY KEY,
    price       numeric(10,2) NOT NULL,
    recorded_on date,                        -- the day that the price is from; null when written by hand
    tick        bigint NOT NULL DEFAULT 0    -- counts the row's updates, so that a reader can tell a lost one
);
ALTER TABLE quotes REPLICA IDENTITY FULL;    -- old values travel too, as "changes"
CREATE FUNCTION count_tick() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW.tick := OLD.tick + 1; RETURN NEW; END $$;
CREATE TRIGGER count_tick BEFORE UPDATE ON quotes FOR EACH ROW EXECUTE FUNCTION count_tick();
"""

_UPDATE = "UPDATE quotes SET price = %s, recorded_on = %s WHERE symbol = %s"

WRITE_BY_HAND = "UPDATE quotes SET price = 100 * random() WHERE symbol = 'YOU' RETURNING price"
"""For psql: a new price each time it runs, printed there to be compared with what the board shows."""

_RETRY = 0.5
"""Seconds between attempts to get a lost connection back."""


def prepare(url: str, series: Sequence[Series]) -> None:
    """Create the table with its first rows in the empty database at `url`."""
    with psycopg.connect(url) as connection:
        connection.execute(SCHEMA)
        insert = "INSERT INTO quotes (symbol, price, recorded_on) VALUES (%s, %s, %s)"
        for one in series:
            connection.execute(insert, [one.symbol, one.points[0].price, one.points[0].day])
        connection.execute(insert, [HAND, 100, None])


class Replay:
    """Updates the row of each symbol `rate` times a second, with the next recorded price each time.

    Every price is one that was recorded, in its order; only the clock is faster. A series that ends starts
    again. The symbols keep slightly different paces, so that commits come one by one and not in volleys.
    """

    def __init__(self, url: str, series: Sequence[Series], *, rate: float = 3.0) -> None:
        self.rate = rate
        self.commits = 0
        self._url = url
        self._series = list(series)
        self._running = asyncio.Event()
        self._running.set()
        self._next = [1] * len(self._series)

    @property
    def paused(self) -> bool:
        """Whether the replay stands still. Writes by others go on."""
        return not self._running.is_set()

    @paused.setter
    def paused(self, value: bool) -> None:
        if value:
            self._running.clear()
        else:
            self._running.set()

    async def run(self) -> None:
        """Replay until cancelled; a lost connection is made anew."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
                    await self._play(connection)
            except psycopg.OperationalError:
                await asyncio.sleep(_RETRY)

    async def _play(self, connection: psycopg.AsyncConnection) -> None:
        clock = asyncio.get_running_loop().time
        period = [(0.9 + 0.2 * n / len(self._series)) / self.rate for n in range(len(self._series))]
        due = [(clock() + period[n] * n / len(self._series), n) for n in range(len(self._series))]
        heapq.heapify(due)
        while True:
            await self._running.wait()
            moment, n = due[0]
            await asyncio.sleep(max(0.0, moment - clock()))
            point = self._series[n].points[self._next[n]]
            await connection.execute(_UPDATE, [point.price, point.day, self._series[n].symbol])
            self.commits += 1
            self._next[n] = (self._next[n] + 1) % len(self._series[n].points)
            # From now on, not from when it was due: after a pause or a stall nothing is made up for.
            heapq.heapreplace(due, (max(moment, clock() - period[n]) + period[n], n))
