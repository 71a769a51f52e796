"""Whether a page can be used by everybody, as far as a program can tell (axe-core, https://github.com/dequelabs/axe-core),
and what it weighs."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

GRAVE = ("serious", "critical")


def findings(page: Page) -> list[str]:
    """What axe finds grave on a page as it is shown now: the rule, the piece of the page, and why."""
    found = []
    for violation in Axe().run(page).response["violations"]:
        if violation["impact"] in GRAVE:
            nodes = violation["nodes"]
            found += [f"{violation['id']}: {node['html'][:200]}: {node['failureSummary']}" for node in nodes]
    return found


def findings_in_light_and_dark(page: Page) -> list[str]:
    """The same in both colour schemes. Transitions are over when it looks."""
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.evaluate("Promise.allSettled(document.getAnimations().map((each) => each.finished))")
        found += [f"{scheme}: {finding}" for finding in findings(page)]
    return found


def weight(page: Page) -> dict[str, int]:
    """The bytes, uncompressed, of all that a page has loaded so far, by address; streams not, since they don't end."""
    entries = page.evaluate("""
        ["navigation", "resource"].flatMap((type) => performance.getEntriesByType(type))
            .map((entry) => [entry.name, entry.decodedBodySize])
    """)
    return {name: int(size) for name, size in entries}
