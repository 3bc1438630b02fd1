"""Sphinx's settings. The source folder is the project's root: see the environment `docs` of tox."""

from timestamp_echo import __version__

project = "tsecho"
author = copyright = "The tsecho authors"  # noqa: A001  # Sphinx names it so
version = release = __version__

root_doc = "docs/index"
# README.rst and its neighbours are read where they are, so that their links and images hold.
include_patterns = ["*.rst", "docs/*.rst"]
# Environments have documents of their own, and trial's folder has links in it, which are followed.
exclude_patterns = [".*", "_trial_temp*", "tests"]
html_theme = "alabaster"
