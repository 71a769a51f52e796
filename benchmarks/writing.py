"""A writer of rows at an offered rate, for the cases in which a real Postgres is written to."""

from __future__ import annotations

import threading
import time

import psycopg


class Writer(threading.Thread):
    """Writes numbered rows to `database`, `rate` a second, some at a time.

    `statement` writes those of `new`, with the columns `n` (the number) and `t`: `stamp` with {number} and {due}, the
    microseconds of CLOCK_MONOTONIC at which the row was due to be written. See load/load.c. At most `most` rows a time.
    """

    def __init__(self, database: str, rate: float, statement: str, stamp: str, most: int = 500) -> None:
        super().__init__(daemon=True)
        self._database = database
        self._rate = rate
        with_rows = "WITH new AS (SELECT * FROM unnest(%(numbers)s::int8[], %(stamps)s::text[]) AS u (n, t)) "
        self._statement = with_rows.encode() + statement.replace("%", "%%").encode()
        self._stamp = stamp
        self._most = most
        self._ended = threading.Event()
        self.written = 0

    def run(self) -> None:
        """Write until it is stopped."""
        with psycopg.connect(self._database, autocommit=True) as connection, connection.cursor() as cursor:
            began = time.monotonic()
            while not self._ended.wait(0.005):
                until = min(int((time.monotonic() - began) * self._rate), self.written + self._most)
                if until > self.written:
                    numbers = list(range(self.written, until))
                    stamps = [self._stamp.format(number=n, due=int((began + n / self._rate) * 1e6)) for n in numbers]
                    cursor.execute(self._statement, {"numbers": numbers, "stamps": stamps})
                    self.written = until

    def stop(self) -> None:
        """Write no more."""
        self._ended.set()
        self.join()
