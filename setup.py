import re
from pathlib import Path

from setuptools import setup

# An index shows the description without the files beside it, so their links and pictures go.
readme = (Path(__file__).parent / "README.rst").read_text(encoding="utf-8")
description = re.sub(r"`([^`<]+) <(?!https?:)[^>]+>`__", r"\1", readme)
description = re.sub(r"(?m)^\.\. image:: (?!https?:).*\n(?: +.*\n)*", "", description)

setup(long_description=description)
