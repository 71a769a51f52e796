"""`rowcast demo` as a person sees it: the real command, the real page, a real Chromium."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tools.accessibility import findings_in_light_and_dark, weight

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

expect.set_options(timeout=60_000)

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

# Everything that arrives over the page's EventSource, with the browser's time, for the tests to look at.
RECORD = """
window.seen = [];
const Native = window.EventSource;
window.EventSource = class extends Native {
  constructor(url) {
    super(url);
    for (const type of ["message", "ready", "subscriptions", "reset", "bye"].map((name) =>
        name === "message" ? name : `rowcast.${name}`)) {
      this.addEventListener(type, (event) => seen.push(
        { type, at: performance.now(), id: event.lastEventId, data: JSON.parse(event.data) }));
    }
  }
};
"""


@dataclass
class Running:
    """A demo that runs: its process and what it printed."""

    process: subprocess.Popen[str]
    printed: list[str]

    @property
    def url(self) -> str:
        return self.find(r"(http://127\.0\.0\.1:\d+)/$")

    @property
    def database(self) -> str:
        return self.find(r"(postgresql://\S+/market)$")

    def find(self, pattern: str) -> str:
        for line in self.printed:
            if match := re.search(pattern, line):
                return match[1]
        raise AssertionError(f"{pattern} is not in {self.printed}")

    def end(self, number: signal.Signals) -> int:
        assert self.process.stdout is not None
        self.process.send_signal(number)
        with self.process.stdout:
            return self.process.wait(30)


def start(*arguments: str) -> Running:
    process = subprocess.Popen(
        [sys.executable, "-m", "rowcast.cli", "demo", "--no-browser", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    printed: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        printed.append(line.rstrip())
        if "Ctrl-C" in line:
            return Running(process, printed)
    raise AssertionError(f"the demo ended with {process.wait()}: {printed}")


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    started = time.monotonic()
    running = start("--port", "0")
    print(f"the demo was up after {time.monotonic() - started:.1f} s")
    yield running
    running.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, demo: Running) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1360, "height": 1000})
    context.add_init_script(RECORD)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(60_000)
    yield page
    context.close()
    assert errors == []


def sign_in(page: Page, demo: Running, name: str) -> None:
    page.goto(demo.url)
    page.get_by_role("button", name=name).click()
    expect(page.locator("#status")).to_contain_text("Live on replica")


def seen(page: Page, kind: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = page.evaluate("kind => seen.filter(each => each.type === kind)", kind)
    return events


def wait_for_rows(page: Page, symbol: str, more: int = 1) -> None:
    """Until `more` further rows of a symbol have arrived."""
    count = "symbol => seen.filter(each => each.data.record?.symbol === symbol).length"
    page.wait_for_function(
        f"([symbol, n]) => ({count})(symbol) >= n", arg=[symbol, page.evaluate(count, symbol) + more]
    )


def holder(page: Page) -> str:
    return page.locator("#status").inner_text().removeprefix("Live on replica ")


def card(page: Page, symbol: str) -> Any:
    return page.locator(".card").filter(has=page.get_by_role("switch", name=f"{symbol},"))


@needs_browser
@pytest.mark.browser
@pytest.mark.xdist_group("demo")
class TestBoard:
    def test_prices_move(self, page: Page, demo: Running) -> None:
        sign_in(page, demo, "Maya")
        wait_for_rows(page, "MSFT", 5)
        price = card(page, "MSFT").locator("output")
        before = price.inner_text()
        expect(price).not_to_have_text(before)
        expect(card(page, "MSFT").locator(".spark .line")).to_have_attribute("d", re.compile(r"^M.*L"))
        expect(page.locator("#hero-latency")).to_have_text(re.compile(r"^[\d.,]+ ms$"))
        expect(page.locator("#fact-lost")).to_have_text("0")
        print("latency shown:", page.locator(".figures").inner_text().replace("\n", " "))

    def test_each_user_gets_their_own_rows(self, page: Page, demo: Running) -> None:
        sign_in(page, demo, "Jonas")
        wait_for_rows(page, "VIX", 10)
        wait_for_rows(page, "IBM", 10)
        assert {each["data"]["topic"] for each in seen(page, "message")} == {"finance:IBM", "finance:VIX"}

    def test_a_switch_acts_on_the_open_stream_by_the_other_replica(self, page: Page, demo: Running) -> None:
        sign_in(page, demo, "Priya")
        wait_for_rows(page, "AMZN")
        switch = page.get_by_role("switch", name="AMZN,")
        changed = "n => seen.filter(each => each.type === 'rowcast.subscriptions').length > n"
        for turn, state in enumerate(("false", "true") * 3):
            clicked = page.evaluate("performance.now()")
            switch.click()
            page.wait_for_function(changed, arg=turn)
            told = seen(page, "rowcast.subscriptions")[turn]
            print(f"switched to {state}: in force {told['at'] - clicked:.0f} ms after the click")
            assert told["data"]["removed" if state == "false" else "added"] == ["finance:AMZN"]
            expect(switch).to_have_attribute("aria-checked", state)
            if state == "false":
                wait_for_rows(page, "IBM", 4)
                late = [each for each in seen(page, "message") if each["at"] > told["at"]]
                assert len(late) > 4
                assert "finance:AMZN" not in {each["data"]["topic"] for each in late}
            else:
                wait_for_rows(page, "AMZN")
        assert len(seen(page, "rowcast.ready")) == 1, "never reconnected"
        writer = page.locator(".replica").filter(has_text="took your last write")
        expect(writer).to_have_count(1)
        assert holder(page) not in writer.locator("b").inner_text()
        expect(page.locator("#story")).to_contain_text(re.compile(r"AMZN on: written by replica [AB], in force on"))

    def test_a_killed_replica_is_survived(self, page: Page, demo: Running) -> None:
        expect_both_up = "() => document.querySelectorAll('.replica[data-state=up]').length === 2"
        sign_in(page, demo, "Priya")
        wait_for_rows(page, "VIX", 3)
        for _ in range(2):
            page.wait_for_function(expect_both_up)
            victim = holder(page)
            connected = len(seen(page, "rowcast.ready"))
            killed = page.evaluate("performance.now()")
            page.locator("#kill").click()
            page.wait_for_function("n => seen.filter(each => each.type === 'rowcast.ready').length > n", arg=connected)
            ready = seen(page, "rowcast.ready")[-1]
            print(f"back {ready['at'] - killed:.0f} ms after kill -9")
            expect(page.locator("#status")).to_contain_text("Live on replica")
            assert holder(page) != victim
            wait_for_rows(page, "VIX", 3)
            expect(page.locator("#story")).to_contain_text(f"Back on replica {holder(page)}")
        assert seen(page, "rowcast.reset") == []
        ticks: dict[str, list[int]] = {}
        for each in seen(page, "message"):
            ticks.setdefault(each["data"]["record"]["symbol"], []).append(each["data"]["record"]["tick"])
        assert len(ticks) == 6
        for symbol, numbers in ticks.items():
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), f"{symbol} lost or doubled a row"
        assert [page.locator(f"#fact-{name}").inner_text() for name in ("lost", "doubled")] == ["0", "0"]
        page.wait_for_function(expect_both_up)

    def test_the_command_on_the_page_writes_a_row_that_arrives(self, page: Page, demo: Running) -> None:
        sign_in(page, demo, "Maya")
        command = page.locator(".command code").inner_text()
        printed = subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout
        price = re.search(r"\d+\.\d\d", printed)
        assert price is not None
        expect(card(page, "YOU").locator("output")).to_have_text(price[0])
        expect(page.locator("#story")).to_contain_text(f"YOU = {price[0]}, written by hand")

    def test_a_row_inserted_by_hand_arrives(self, page: Page, demo: Running) -> None:
        sign_in(page, demo, "Maya")
        with psycopg.connect(demo.database, autocommit=True) as connection:
            connection.execute("DELETE FROM quotes WHERE symbol = 'YOU'")
            connection.execute("INSERT INTO quotes (symbol, price) VALUES ('YOU', 1234.5)")
        expect(card(page, "YOU").locator("output")).to_have_text("1,234.50")
        expect(page.locator("#fact-doubled")).to_have_text("0")

    def test_the_replay_can_be_held(self, page: Page, demo: Running) -> None:
        sign_in(page, demo, "Maya")
        wait_for_rows(page, "MSFT")
        page.get_by_role("button", name="Pause the replay").click()
        go_on = page.get_by_role("button", name="Go on with the replay")
        expect(go_on).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#browser-rate")).to_have_text("0")
        go_on.click()
        wait_for_rows(page, "MSFT")

    def test_raw_events_can_be_read(self, page: Page, demo: Running) -> None:
        sign_in(page, demo, "Maya")
        page.locator("#lines details").nth(5).wait_for()
        page.get_by_role("button", name="rowcast.*").click()
        line = page.locator("#lines details").first
        expect(line).to_contain_text("rowcast.ready")
        line.locator("summary").click()
        expect(line.locator("pre")).to_contain_text("event: rowcast.ready\ndata: {")
        expect(page.get_by_role("button", name="Held")).to_have_attribute("aria-pressed", "true")

    @pytest.mark.parametrize("width", [360, 768, 1280])
    def test_it_fits_the_screen(self, page: Page, demo: Running, width: int) -> None:
        page.set_viewport_size({"width": width, "height": 800})
        sign_in(page, demo, "Priya")
        wait_for_rows(page, "IBM", 2)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    def test_everybody_can_use_it_and_it_is_light(self, page: Page, demo: Running) -> None:
        page.goto(demo.url)
        page.get_by_role("button", name="Priya").wait_for()
        found = [f"door: {finding}" for finding in findings_in_light_and_dark(page)]
        sign_in(page, demo, "Priya")
        wait_for_rows(page, "IBM", 2)
        found += findings_in_light_and_dark(page)
        assert found == []
        loaded = {url: size for url, size in weight(page).items() if "/demo/" not in url}
        assert len(loaded) > 10, "the page, its styles and its scripts"
        assert sum(loaded.values()) < 150_000, loaded

    def test_the_operators_page_counts_both_replicas(self, page: Page, browser: Browser, demo: Running) -> None:
        sign_in(page, demo, "Priya")
        expect(page.locator(".replica[data-state=up]")).to_have_count(2, timeout=60_000)
        port = page.locator(".replica .sub").first.inner_text().split()[0]  # it changes when a replica was killed
        config = tomllib.loads(Path(demo.find(r"config\s+(\S+)")).read_text())
        context = browser.new_context(http_credentials={"username": "operator", "password": config["api"]["key"]})
        operator = context.new_page()
        operator.goto(f"http://127.0.0.1{port}/admin/")
        for _ in range(3):
            shown = operator.locator("#position").inner_text()
            expect(operator.locator("#position")).not_to_have_text(shown, timeout=60_000)
        assert operator.locator("#replicas tbody th").all_inner_texts() == ["A", "B", "all"]
        context.close()

    def test_lost_and_doubled_rows_would_be_told(self, page: Page, demo: Running) -> None:
        page.goto(demo.url)
        counted = page.evaluate("""async () => {
          const { Ledger } = await import("/static/ledger.js");
          const ledger = new Ledger();
          for (const tick of [7, 8, 11, 11, 12]) ledger.take({ symbol: "IBM", tick });
          ledger.forget("IBM");
          ledger.take({ symbol: "IBM", tick: 40 });
          return [ledger.rows, ledger.lost, ledger.doubled];
        }""")
        assert counted == [5, 2, 1]

    def test_commit_timestamps_are_read_to_the_microsecond(self, page: Page, demo: Running) -> None:
        page.goto(demo.url)
        read = page.evaluate("""async () => {
          const { parse } = await import("/static/clock.js");
          const times = ["10:00:00.123456Z", "12:30:00.5+02:30", "10:00:00Z"];
          return times.map((time) => parse("2026-03-01T" + time));
        }""")
        whole = 1772359200000
        assert read == pytest.approx([whole + 123.456, whole + 500, whole], abs=0.001)

    def test_light_and_dark(self, page: Page, demo: Running) -> None:
        page.emulate_media(color_scheme="dark")
        sign_in(page, demo, "Maya")
        background = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(background)
        page.locator("#theme").click()
        expect(page.locator("#theme")).to_have_attribute("aria-label", "Theme: light. Change it")
        assert page.evaluate(background) != dark
        page.reload()
        assert page.evaluate(background) != dark, "the choice is remembered"
        page.locator("#theme").click()
        assert page.evaluate(background) == dark


@pytest.mark.xdist_group("demo")
class TestCommand:
    def test_ctrl_c_leaves_nothing_behind(self) -> None:
        running = start("--port", "0", "--replicas", "3")
        pids = [int(pid) for line in running.printed for pid in re.findall(r"process (\d+)", line)]
        assert len(pids) == 3
        with psycopg.connect(running.database) as connection:
            row = connection.execute("SHOW data_directory").fetchone()
        assert row is not None
        config = Path(running.find(r"config\s+(\S+)"))
        assert config.stat().st_mode & 0o077 == 0, "the secret is for its owner only"
        started = time.monotonic()
        assert running.end(signal.SIGINT) == 0
        print(f"down after {time.monotonic() - started:.1f} s")
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        assert not Path(row[0]).parent.exists()
        assert not config.parent.exists()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(running.database)

    def test_a_taken_port_is_told_in_one_line(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            outcome = refused("--port", str(port))
        assert outcome.returncode == 1
        assert f"port {port} can't be used" in outcome.stderr
        assert "choose another by --port" in outcome.stderr

    def test_the_log_in_valkey_is_refused_in_one_line(self) -> None:
        outcome = refused("--log", "valkey")
        assert outcome.returncode == 2
        assert "--log valkey" in outcome.stderr


def refused(*arguments: str) -> subprocess.CompletedProcess[str]:
    outcome = subprocess.run(
        [sys.executable, "-m", "rowcast.cli", "demo", "--no-browser", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert len(outcome.stderr.strip().splitlines()) == 1, outcome.stderr
    return outcome
