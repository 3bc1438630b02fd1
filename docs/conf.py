"""Sphinx's settings. `tox -e docs` builds the pages and, with pydoctor, the API."""

from timestamp_echo import __version__

project = "tsecho"
author = copyright = "The tsecho authors"  # noqa: A001  # Sphinx names it so
version = release = __version__

exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"tsecho {version}"
extensions = ["sphinx.ext.intersphinx", "sphinx_copybutton"]
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
intersphinx_mapping: dict[str, tuple[str, str | None]] = {}
man_pages = [
    ("reference/client", "tsecho", "send lines and print their timestamps", author, 1),
    ("reference/ping", "tsecho-ping", "measure round trips and clock offsets", author, 1),
    ("reference/server", "tsecho-server", "the timestamp echo service", author, 7),
]
