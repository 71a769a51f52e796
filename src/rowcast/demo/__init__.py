"""`rowcast demo`: Postgres, replicas and a live board in the browser, from one command, gone without a trace.

market      the recorded prices, as a wheel ships them
replay      writes them into Postgres, as an application would
supervisor  runs the replicas: real `rowcast serve` processes
proxy       one origin for the browser: streams and channel writes to the replicas
front       the page (static/) and the facts that it shows
stage       puts all that up and takes it down
"""

from __future__ import annotations

from rowcast.demo.stage import run

__all__ = ["run"]
