"""Every block of code in the documents is understood by what it is written for. (The tutorial's are run, in
test_tutorial.py.)"""

from __future__ import annotations

import ast
import json
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rowcast.config import Config
from tools.markdown import ALL, Block


def python(block: Block, directory: Path) -> None:
    compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)


def toml(block: Block, directory: Path) -> None:
    """A whole configuration, or a part of one: the database that its other options need is put beside it."""
    text = block.text
    if "postgres" not in tomllib.loads(text):
        text += '\n[postgres]\nurl = "postgresql://app@localhost/app"\n'
    file = directory / "rowcast.toml"
    file.write_text(text)
    Config.load(file)


def sh(block: Block, directory: Path) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def js(block: Block, directory: Path) -> None:
    file = directory / "block.mjs"
    file.write_text(block.text)
    checked = subprocess.run(["node", "--check", file], text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr


CHECKS: dict[str, Callable[[Block, Path], object]] = {
    "js": js,
    "json": lambda block, _: json.loads(block.text),
    "python": python,
    "sh": sh,
    "toml": toml,
    "yaml": lambda block, _: list(yaml.safe_load_all(block.text)),
}
UNCHECKED = {"", "text", "sql", "jsx", "html", "http", "diff", "nginx", "caddy", "haproxy", "css"}
"""Those that are only shown; "" is a picture in characters, a stream or a formula."""

NAMED = [block for block in ALL if not block.language.startswith("{")]


@pytest.mark.parametrize("block", NAMED, ids=str)
def test_a_block_is_what_it_says(block: Block, tmp_path: Path) -> None:
    assert block.language in CHECKS.keys() | UNCHECKED
    if check := CHECKS.get(block.language):
        check(block, tmp_path)


def test_there_are_blocks_of_the_languages_that_matter() -> None:
    assert {"python", "toml", "sh", "json", "js"} <= {block.language for block in ALL}
