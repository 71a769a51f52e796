"""The site, built once for all tests of a process, as strictly as it is built for readers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the built site. A warning is an error."""
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet"]
    built = subprocess.run([*command, ROOT / "docs", directory], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return directory
