"""A client of the stream, as a program on the command line or a service needs it, and of the API.

    from rowcast.client import SyncEventStream

    stream = SyncEventStream("https://live.example", token=my_token)
    for event in stream:
        print(event.event, event.json())

`EventStream` is the same for asyncio. Both come back by themselves with Last-Event-ID, wait as long as the server's
`retry:` says, ask for a new token when one has expired, and stop only when coming back would be of no use (400, 403,
a token that is refused, and every other 4xx but 408 and 429). What they decide stands in `session`, without IO.
"""

from rowcast.client.api import call, events_url, service_url
from rowcast.client.rows import Rows
from rowcast.client.session import Event, Session
from rowcast.client.streams import EventStream, SyncEventStream

__all__ = ["Event", "EventStream", "Rows", "Session", "SyncEventStream", "call", "events_url", "service_url"]
