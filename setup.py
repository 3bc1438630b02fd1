import re
from pathlib import Path

from setuptools import setup

# An index shows the description without the files beside it: links to them become their paths.
readme = (Path(__file__).parent / "README.rst").read_text(encoding="utf-8")
description = re.sub(r"`([^`<]+) <(?!https?:)([^>]+)>`__", r"\1 (``\2``)", readme)
description = re.sub(
    r"(?m)^\.\. image:: (?!https?:)(.*)\n   :alt: (.*)\n", r"\2 (``\1``).\n", description
)
description += "\nThe files named in parentheses are in the source distribution.\n"

setup(long_description=description)
