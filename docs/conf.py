"""The documents as a site: `make docs` builds it into docs/_build. Nothing in it is fetched from elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from rowcast import __version__

project = "Rowcast"
author = "The Rowcast authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "rowcast_docs"]
exclude_patterns = ["_build", "_ext"]
templates_path = ["_templates"]
nitpicky = False
suppress_warnings: list[str] = []

myst_enable_extensions = ["attrs_inline", "deflist"]
myst_heading_anchors = 4

# Docstrings are read beside their code, so they are plain text with `names` and indented examples.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "Rowcast"
html_favicon = "_static/icon.svg"
html_logo = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["rowcast.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_use_index = True
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {
        "color-brand-primary": "#2458d3",
        "color-brand-content": "#2458d3",
        "color-brand-visited": "#5b3fb8",
        "color-foreground-muted": "#566173",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7ea6ff",
        "color-brand-content": "#7ea6ff",
        "color-brand-visited": "#b39dff",
        "color-foreground-muted": "#9aa6b7",
        "color-background-primary": "#0d1015",
        "color-background-secondary": "#151a21",
    },
}
