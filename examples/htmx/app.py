"""A board of tasks with htmx: the page has no script of its own. `uvicorn app:app`, with DATABASE_URL set.

An event says that something changed, and htmx fetches the list anew.
"""

import html
import os
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs

from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from rowcast import Rowcast
from rowcast.core.grants import Grant

# htmx.org and htmx-ext-sse, as `npm install` puts them there.
SCRIPTS = Path(os.environ.get("NODE_MODULES", "node_modules"))

pool = AsyncConnectionPool(os.environ["DATABASE_URL"], open=False)
cast = Rowcast(postgres=os.environ["DATABASE_URL"], route=[{"table": "tasks", "topic": "tasks", "deletes": False}])


async def everybody(request: Request) -> Grant:
    """There are no users here: whoever comes gets the one topic."""
    return Grant("everybody", frozenset(["tasks"]))


async def page(request: Request) -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"))


async def tasks(request: Request) -> HTMLResponse:
    async with pool.connection() as connection:
        if request.method == "POST":
            form = parse_qs((await request.body()).decode())
            await connection.execute("INSERT INTO tasks (text) VALUES (%s)", form["text"])
            return HTMLResponse(status_code=204)
        # An event may be a moment ahead of what other sessions see: those who are still writing are waited for.
        await connection.execute("LOCK TABLE tasks IN SHARE MODE")
        rows = await connection.execute("SELECT text FROM tasks ORDER BY id")
        return HTMLResponse("".join([f"<li>{html.escape(text)}" async for (text,) in rows]))


@asynccontextmanager
async def lifespan(app: Starlette):
    async with pool:
        async with pool.connection() as connection:
            await connection.execute("CREATE TABLE IF NOT EXISTS tasks (id serial PRIMARY KEY, text text NOT NULL)")
        async with cast.lifespan():
            yield


app = Starlette(
    routes=[
        Route("/", page),
        Route("/tasks", tasks, methods=["GET", "POST"]),
        Mount("/live", cast.asgi(authenticate=everybody)),
        Mount("/scripts", StaticFiles(directory=SCRIPTS)),
    ],
    lifespan=lifespan,
)
