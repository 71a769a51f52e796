"""The operator's page as a person uses it, in a real Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import httpx
import psycopg
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.testing.server import RowcastServer
from tools.accessibility import findings_in_light_and_dark, weight

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECRET = "0123456789abcdef0123456789abcdef"

CONFIG = """
[postgres]
url = "{url}"

[auth]
secret = "{secret}"

[api]
key = "the key"

[[route]]
table = "items"
topic = "items:{{kind}}"
deletes = false

[[subscription]]
table = "subs"
user = "{{usr}}"
topics = ["items:{{kind}}"]
"""

expect.set_options(timeout=60_000)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture
def server(database: str) -> Iterator[RowcastServer]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY, kind text NOT NULL)")
        connection.execute("CREATE TABLE subs (id bigserial PRIMARY KEY, usr text, kind text)")
        connection.execute("INSERT INTO subs (usr, kind) VALUES ('ann', 'x')")
    with RowcastServer(CONFIG.format(url=database, secret=SECRET), name="r1") as server:
        yield server


@pytest.fixture
def page(server: RowcastServer) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(http_credentials={"username": "me", "password": "the key"})
        page = context.new_page()
        page.on("pageerror", lambda error: pytest.fail(str(error)))
        page.goto(f"{server.url}/admin/")
        expect(page.locator("#state")).to_have_text("all is well", timeout=60_000)
        loaded = weight(page)
        assert len(loaded) >= 3, "the page, its style and its script"
        assert sum(loaded.values()) < 150_000, loaded
        yield page
        browser.close()


def test_an_operator_sees_explains_follows_and_disconnects(page: Page, server: RowcastServer, database: str) -> None:
    expect(page.locator("#state")).to_have_text("all is well", timeout=20_000)
    expect(page.locator("#replica")).to_contain_text("r1")
    expect(page.locator("#replicas tbody")).to_contain_text("r1")
    expect(page.locator("#problems")).to_be_hidden()
    token = mint(Config.from_sections({"auth": SECRET}), "ann")
    with httpx.stream("GET", f"{server.url}/events", headers={"authorization": f"Bearer {token}"}) as stream:
        blocks = stream.iter_text()
        while "rowcast.ready" not in next(blocks):
            pass
        page.get_by_label("User id").fill("ann")
        page.keyboard.press("Enter")
        expect(page.locator("#user-answer")).to_contain_text("items:x")
        expect(page.locator("#user-answer")).to_contain_text('"kind":"x"')
        expect(page.locator("#user-answer")).to_contain_text("live")
        page.get_by_label("Topic", exact=True).fill("items:x")
        page.keyboard.press("Enter")
        expect(page.locator("#tail")).to_contain_text("following")
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("INSERT INTO items (kind) VALUES ('x'), ('hidden')")
        expect(page.locator("#tail")).to_contain_text('"kind":"x"')
        expect(page.locator("#tail")).not_to_contain_text("hidden")
        assert findings_in_light_and_dark(page) == []
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Disconnect").click()
        expect(page.locator("#user-answer")).to_contain_text("in force from")
        rest = "".join(blocks)
        assert "rowcast.bye" in rest
        assert "disconnected" in rest
