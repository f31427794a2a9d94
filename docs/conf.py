"""Sphinx configuration. Build with ``make docs``: a warning is an error."""

import sys
from pathlib import Path

import dgating

sys.path.insert(0, str(Path(__file__).parent))  # mathml.py

project = "dgating"
author = "The dgating developers"
copyright = "2026, The dgating developers"
release = dgating.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml"]
exclude_patterns = ["_build"]
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_theme = "furo"
html_title = f"dgating {release}"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2

add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the Args section says what a value means; the signature keeps the defaults
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of the result dataclasses as a list, not as entries of their own
