"""The topic index: which streams have a topic.

Most topics have one or a few streams, a few have thousands. So the subscribers of a topic are the stream
itself, then a list up to 16, then a dict: for a million memberships 28 MB, where sets would take 80.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Generic, TypeVar

_LIST_LIMIT = 16

S = TypeVar("S")


class TopicIndex(Generic[S]):
    """Topic → streams. A stream is added to a topic at most once; it must be neither a list nor a dict."""

    def __init__(self) -> None:
        self._topics: dict[str, S | list[S] | dict[S, None]] = {}

    def __len__(self) -> int:
        return len(self._topics)

    def __iter__(self) -> Iterator[str]:
        return iter(self._topics)

    def get(self, topic: str) -> Collection[S]:
        """The streams that have the topic. Not to be held over a change of the index."""
        found = self._topics.get(topic)
        if found is None:
            return ()
        if isinstance(found, (list, dict)):
            return found
        return (found,)

    def has_any(self, topics: Iterable[str]) -> bool:
        """Whether any of some topics has a stream."""
        return not self._topics.keys().isdisjoint(topics)

    def matching(self, prefix: str) -> Iterator[S]:
        """The streams that have any topic with the prefix, each once. Costs by the number of topics."""
        seen: set[int] = set()
        for topic in self._topics:
            if topic.startswith(prefix):
                for stream in self.get(topic):
                    if id(stream) not in seen:
                        seen.add(id(stream))
                        yield stream

    def add(self, topic: str, stream: S) -> None:
        """Put a stream on a topic that it does not have yet."""
        found = self._topics.get(topic)
        if found is None:
            self._topics[topic] = stream
        elif isinstance(found, dict):
            found[stream] = None
        elif isinstance(found, list):
            if len(found) < _LIST_LIMIT:
                found.append(stream)
            else:
                self._topics[topic] = dict.fromkeys([*found, stream])
        else:
            self._topics[topic] = [found, stream]

    def remove(self, topic: str, stream: S) -> None:
        """Take a stream off a topic that it has."""
        found = self._topics[topic]
        if isinstance(found, dict):
            del found[stream]
            if not found:
                del self._topics[topic]
        elif isinstance(found, list):
            found.remove(stream)
            if len(found) == 1:
                self._topics[topic] = found[0]
        else:
            assert found is stream
            del self._topics[topic]
