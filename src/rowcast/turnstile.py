"""The turnstile: so much in one turn of the loop, and the rest in the turns to come.

When all streams of a replica go or come at once, what must be done for each would keep the loop from all others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Turnstile:
    """Does at most `per_turn` things in a turn of the loop, in the order in which they were asked for.

    Without a running loop (in tests that drive a hub by hand) everything is done at once.
    """

    def __init__(self, per_turn: int) -> None:
        self._per_turn = self._left = per_turn
        self._line: deque[Callable[[], None]] = deque()
        self._turning = False

    def __len__(self) -> int:
        """How many things wait."""
        return len(self._line)

    def do(self, work: Callable[[], None]) -> None:
        """Do this now, or in its turn; it must not raise."""
        if not self._turning:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                work()
                return
            self._turning = True
            loop.call_soon(self._turn)
        if self._left:
            self._left -= 1
            work()
        else:
            self._line.append(work)

    def _turn(self) -> None:
        """A turn of the loop has passed."""
        self._turning = self._left < self._per_turn
        self._left = self._per_turn
        if self._turning:
            asyncio.get_running_loop().call_soon(self._turn)
        while self._line and self._left:
            self._left -= 1
            self._line.popleft()()
