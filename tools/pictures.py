"""The pictures in docs/images: of the demo, the operator's page and the documents, in light and dark and on a phone.

    python -m tools.pictures [--into DIRECTORY] [demo] [admin] [docs]

Runs the demo and builds the documents; needs Chromium, the font Inter and pngquant (Debian: `apt-get install chromium
fonts-inter pngquant`). Look at what it makes before you commit it.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

ROOT = Path(__file__).parents[1]
WIDE, PHONE = 1360, 390
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


def main(directory: Path, wanted: set[str]) -> None:
    """Take the `wanted` pictures, into `directory`."""
    chromium = needed("chromium", "chromium-browser", "google-chrome")
    needed("pngquant")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--hide-scrollbars"])
        if wanted & {"demo", "admin"}:
            with running_demo() as printed:
                if "admin" in wanted:
                    for scheme in SCHEMES:
                        operators_page(browser, printed, scheme, directory)
                if "demo" in wanted:  # last, since it kills replicas, and they come back on other ports
                    for scheme in SCHEMES:
                        demo(browser, printed, scheme, directory)
        if "docs" in wanted:
            documents(browser, directory)
        browser.close()


def needed(*programs: str) -> str:
    """The first of some programs that is installed."""
    for program in programs:
        if found := shutil.which(program):
            return found
    sys.exit(f"install {programs[0]}: apt-get install {programs[0]}")


@contextlib.contextmanager
def running_demo() -> Iterator[str]:
    """A demo that runs meanwhile: what it printed when it was up."""
    command = [sys.executable, "-m", "rowcast.cli", "demo", "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if "Ctrl-C" in line:
                break
        try:
            yield printed
        finally:
            process.terminate()
            process.stdout.read()


def fact(printed: str, pattern: str) -> str:
    """What the demo said of itself."""
    found = re.search(pattern, printed, re.MULTILINE)
    assert found is not None, printed
    return found[1]


def demo(browser: Browser, printed: str, scheme: Scheme, directory: Path) -> None:
    """The board, after everything that it suggests was tried; and on a phone."""
    context = opened(browser, scheme, WIDE, 1180)
    page = context.new_page()
    page.goto(fact(printed, r"(http://127\.0\.0\.1:\d+/)$"))
    page.get_by_role("button", name="Maya").click()
    expect(page.locator("#status")).to_contain_text("Live on replica", timeout=60_000)
    expect(page.locator(".replica[data-state=up]")).to_have_count(2)
    subprocess.run(page.locator(".command code").inner_text(), shell=True, check=True, capture_output=True)  # noqa: S602
    switch = page.get_by_role("switch", name="VIX,")
    if switch.get_attribute("aria-checked") == "true":  # left so by the picture before
        switch.click()
        expect(switch).to_have_attribute("aria-checked", "false", timeout=60_000)
    switch.click()
    expect(page.locator("#story")).to_contain_text("VIX on", timeout=60_000)
    page.locator("#kill").click()
    expect(page.locator("#story")).to_contain_text("Back on replica", timeout=60_000)
    expect(page.locator(".replica[data-state=up]")).to_have_count(2, timeout=60_000)
    page.wait_for_timeout(15_000)  # for the lines of prices to have something to show
    taken(page, directory / f"demo-{scheme}.png")
    page.set_viewport_size({"width": PHONE, "height": 844})
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(1_000)
    taken(page, directory / f"demo-phone-{scheme}.png")
    context.close()


def operators_page(browser: Browser, printed: str, scheme: Scheme, directory: Path) -> None:
    """The operator's page of a replica of the demo, with a user looked up and a topic followed."""
    config = tomllib.loads(Path(fact(printed, r"config\s+(\S+)$")).read_text(encoding="utf-8"))
    url = fact(printed, r"replica A\s+(http://127\.0\.0\.1:\d+)")
    board = fact(printed, r"(http://127\.0\.0\.1:\d+/)$")
    context = opened(browser, scheme, WIDE, 1000, key=config["api"]["key"])
    users = [opened(browser, scheme, WIDE, 1000) for _ in range(3)]
    for user, name in zip(users, ("Maya", "Jonas", "Priya"), strict=True):
        page = user.new_page()
        page.goto(board)
        page.get_by_role("button", name=name).click()
        expect(page.locator("#status")).to_contain_text("Live on replica", timeout=60_000)
    page = context.new_page()
    page.goto(f"{url}/admin/")
    expect(page.locator("#state")).to_have_text("all is well", timeout=60_000)
    page.get_by_label("User id").fill("maya")
    page.keyboard.press("Enter")
    expect(page.locator("#user-answer")).to_contain_text("finance:")
    page.get_by_label("Topic", exact=True).fill("finance:MSFT")
    page.keyboard.press("Enter")
    page.locator("#tail p").nth(8).wait_for(timeout=60_000)
    page.wait_for_timeout(40_000)  # for the curves to have something to show
    page.locator("#tail-stop").click()
    page.evaluate("document.activeElement.blur()")
    taken(page, directory / f"admin-{scheme}.png", whole=True)
    page.set_viewport_size({"width": PHONE, "height": 844})
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(1_000)
    taken(page, directory / f"admin-phone-{scheme}.png")
    for one in (context, *users):
        one.close()


def documents(browser: Browser, directory: Path) -> None:
    """A page of the documents with a drawing; on a phone the tutorial."""
    with tempfile.TemporaryDirectory() as built:
        subprocess.run([sys.executable, "-m", "sphinx", "--quiet", ROOT / "docs", built], check=True)
        for scheme in SCHEMES:
            for name, page_name, width in (
                ("docs", "explanation/exact-subscriptions", WIDE),
                ("docs-phone", "tutorial/index", PHONE),
            ):
                context = opened(browser, scheme, width, 844)
                page = context.new_page()
                page.goto(f"file://{built}/{page_name}.html")
                taken(page, directory / f"{name}-{scheme}.png")
                context.close()


def opened(browser: Browser, scheme: Scheme, width: int, height: int, *, key: str = "") -> BrowserContext:
    """A window; with `key`, one that may see the operator's page."""
    credentials = {"http_credentials": {"username": "operator", "password": key}} if key else {}
    return browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **credentials)


def taken(page: Page, path: Path, *, whole: bool = False) -> None:
    """A picture, of 256 colours: a quarter of the bytes, and nobody sees it."""
    page.screenshot(path=path, full_page=whole)
    subprocess.run(["pngquant", "--force", "--skip-if-larger", "--ext", ".png", "--speed", "1", path], check=False)
    print(f"{path}  {path.stat().st_size / 1000:.0f} kB", flush=True)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("what", nargs="*", choices=["demo", "admin", "docs"], default=["demo", "admin", "docs"])
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments().into, set(arguments().what))
