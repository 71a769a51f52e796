"""What Sphinx does not know of our documents: how docstrings are written, links to files that are no pages, the
pictures that are drawn, and the options of the command line."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

from rowcast.cli import cli

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent

PAGES = {
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "explanation/benchmarks.md",
    "clients/js/README.md": "reference/browser.md",
}
"""Files outside of docs/ that are pages of the site, by a page that includes them."""

_INCLUDE = re.compile(r"```\{include\} (\S+)\n```\n")
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def links_out(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn links to files of the repository into links to their pages, or, where there is none, into their path.

    A page that does nothing but include a file of the repository becomes that file, with links as seen from there.
    """
    here = (DOCS / f"{docname}.md").parent
    text, origin = source[0], here
    if whole := _INCLUDE.fullmatch(text):
        included = (here / whole[1]).resolve()
        app.env.note_dependency(str(included))
        text, origin = included.read_text(encoding="utf-8"), included.parent
    source[0] = _relinked(text, origin, here)


def _relinked(text: str, origin: Path, here: Path) -> str:
    """`text`, whose links are seen from the directory `origin`, for a page in the directory `here`."""

    def replace(match: re.Match[str]) -> str:
        words, target, anchor = match[1], (origin / match[2]).resolve(), match[3] or ""
        if not target.exists() or not target.is_relative_to(ROOT):
            return match[0]  # for Sphinx to complain of
        inside = target.relative_to(ROOT)
        if str(inside) in PAGES:
            target = DOCS / PAGES[str(inside)]
        elif not target.is_relative_to(DOCS) or target.is_dir():
            return words if words.strip("`") == str(inside) else f"{words} (`{inside}` in the repository)"
        return f"[{words}]({os.path.relpath(target, here)}{anchor})"

    return _LINK.sub(replace, text)


def docstrings(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make reStructuredText of docstrings, which are written for readers of the code.

    Indented examples are marked as literal text, and lists get the blank line before them.
    """
    made: list[str] = []
    previous = ""
    for line in lines:
        if line.startswith("    ") and not previous.strip() and not _in_literal(made):
            made += ["::", ""]
        elif re.match(r"[-*] ", line) and previous.strip() and not re.match(r"[-*] |  ", previous):
            made.append("")
        made.append(line)
        previous = line
    lines[:] = made


def _in_literal(lines: list[str]) -> bool:
    """Whether the last line with text before the end belongs to an indented block, or opens one."""
    last = next((line for line in reversed(lines) if line.strip()), "")
    return last.startswith("  ") or last.rstrip().endswith("::") or re.match(r"[-*] ", last) is not None


class DrawnPictures(SphinxPostTransform):
    """Puts SVGs that are drawn into the page itself, where they follow its colours (also by its own switch).

    Elsewhere, as on a code host, the same file stands alone: then its own style decides by the reader's system.
    """

    default_priority = 5
    formats = ("html",)

    def run(self, **arguments: Any) -> None:
        """Replace each image of docs/images/*.svg by the file's text."""
        for image in list(self.document.findall(nodes.image)):
            uri = image["uri"]
            if uri.startswith("images/") and uri.endswith(".svg"):
                text = (DOCS / uri).read_text(encoding="utf-8")
                text = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
                raw = nodes.raw("", f'<figure class="drawn" tabindex="0">{text}</figure>', format="html")
                parent = image.parent
                (parent if isinstance(parent, nodes.paragraph) and len(parent) == 1 else image).replace_self(raw)


def accessible(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """What the theme leaves to be wished for: headings have a level, and what scrolls can be reached by keyboard."""
    for name in ("furo_navigation_tree", "body"):
        if isinstance(html := context.get(name), str):
            html = html.replace('role="heading">', 'role="heading" aria-level="2">')
            html = html.replace("<pre>", '<pre tabindex="0">')
            context[name] = html.replace('<div class="table-wrapper', '<div tabindex="0" class="table-wrapper')


class CommandOptions(SphinxDirective):
    """`command-options`: every command with its arguments and options, as `--help` tells them."""

    def run(self) -> list[nodes.Node]:
        """One section for each command, made of the click commands themselves."""
        return [self._section(name, command) for name, command in _commands(cli, "rowcast")]

    def _section(self, name: str, command: click.Command) -> nodes.section:
        section = nodes.section(ids=[nodes.make_id(name)])
        section += nodes.title(text=name)
        usage = " ".join(command.collect_usage_pieces(click.Context(command, info_name=name)))
        section += nodes.literal_block(text=f"{name} {usage}", language="text")
        section += nodes.paragraph(text=inspect.cleandoc(command.help or ""))
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        if options:
            section += self._table([self._row(option) for option in options])
        return section

    def _row(self, option: click.Option) -> tuple[str, str, str]:
        names = ", ".join([*option.opts, *option.secondary_opts])
        words = re.sub(r" *\[default: (.*?)\]", r" Default: \1.", option.help or "")
        if option.required:
            words += " Required."
        elif option.show_default and isinstance(option.default, (str, int)):
            words += f" Default: {option.default}."
        return names, str(option.envvar), words

    def _table(self, rows: list[tuple[str, str, str]]) -> nodes.table:
        group = nodes.tgroup(cols=3)
        group += [nodes.colspec(colwidth=width) for width in (22, 33, 45)]
        head, body = nodes.thead(), nodes.tbody()
        head += _entries([nodes.paragraph(text=text) for text in ("option", "environment", "meaning")])
        for names, variable, words in rows:
            body += _entries([_code(names), _code(variable), nodes.paragraph(text=words)])
        group += [head, body]
        table = nodes.table()
        table += group
        return table


def _commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    for key, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, f"{name} {key}")
        else:
            yield f"{name} {key}", command


def _entries(cells: list[nodes.paragraph]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        entry = nodes.entry()
        entry += cell
        row += entry
    return row


def _code(text: str) -> nodes.paragraph:
    paragraph = nodes.paragraph()
    paragraph += nodes.literal(text=text)
    return paragraph


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.connect("source-read", links_out)
    app.connect("autodoc-process-docstring", docstrings)
    app.connect("html-page-context", accessible, priority=900)
    app.add_post_transform(DrawnPictures)
    app.add_directive("command-options", CommandOptions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
