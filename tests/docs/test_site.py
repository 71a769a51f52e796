"""The documents: the site builds without a warning, nothing in it comes from elsewhere, and every link has an end."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tools.markdown import ROOT, TEXTS


class Page(HTMLParser):
    """What a page names, and what it points to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        if name := given.get("id"):
            self.names.add(name)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "shortcut icon"):
            self.loads.append(given["href"])
        elif "src" in given:
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def well_formed(url: str) -> bool:
    """Whether an address elsewhere could be one: nothing is fetched here."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme == "https" and re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", host) is not None and " " not in url


@pytest.mark.xdist_group("docs")
@pytest.mark.timeout(600)  # whoever is first builds the site
class TestSite:
    def test_every_link_has_an_end(self, site: Path, pages: dict[Path, Page]) -> None:
        broken = []
        for path, page in pages.items():
            for link in page.links:
                target, _, anchor = link.partition("#")
                if urlsplit(link).scheme:
                    if not well_formed(link):
                        broken.append(f"{path.relative_to(site)}: {link} is no address")
                    continue
                file = (path.parent / unquote(target)).resolve() if target else path
                if not file.is_file():
                    broken.append(f"{path.relative_to(site)}: {link} is no file")
                elif anchor and file.suffix == ".html" and unquote(anchor) not in pages[file].names:
                    broken.append(f"{path.relative_to(site)}: {link} is no place on that page")
        assert broken == []
        assert sum(len(page.links) for page in pages.values()) > 1000, "are there no links, or are they not seen?"

    def test_nothing_is_loaded_from_elsewhere(self, site: Path, pages: dict[Path, Page]) -> None:
        for path, page in pages.items():
            for url in page.loads:
                assert not urlsplit(url).netloc, f"{path}: {url}"
                assert url.startswith("data:") or (path.parent / unquote(urlsplit(url).path)).is_file(), (
                    f"{path}: {url}"
                )
        for sheet in site.rglob("*.css"):
            assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_text_has_an_end(path: Path) -> None:
    """As they are read on a code host, where no site is built."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|srcset)=\"([^\"]+)\"", text)
    for link in links:
        if urlsplit(link).scheme:
            assert well_formed(link), link
            continue
        target, _, anchor = link.partition("#")
        file = path.parent / target if target else path
        assert file.exists(), f"{path}: {link}"
        if anchor and file.suffix == ".md":
            assert anchor in headings(file), f"{path}: {link}"


def headings(path: Path) -> set[str]:
    """The anchors that a code host gives to the headings of a text."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}
