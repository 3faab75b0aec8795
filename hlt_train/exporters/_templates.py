"""What is written into an export as it stands in this room: templates, sources that import nothing of hlt_train, and the selftests made of two of them."""

from __future__ import annotations

import re
from importlib import resources

__all__ = ["selftest", "source", "template"]

SHARED = "selftest_files.py"
IMPORT = re.compile(r"^from hlt_train\.exporters\.templates\.selftest_files import .*\n", re.MULTILINE)
BODY = "from __future__ import annotations\n"


def source(name: str) -> str:
    """The source of a helper of this room that imports nothing of hlt_train, to be written into an export as it is."""
    return resources.files("hlt_train.exporters").joinpath(name).read_text()


def template(name: str) -> str:
    """A file of templates/."""
    return source(f"templates/{name}")


def selftest(name: str) -> str:
    """The text of selftest.py: the template `name`, whose import of what all selftests do alike is replaced by that, so that it needs no other file."""
    shared = template(SHARED).partition(BODY)[2].strip("\n")
    text, replaced = IMPORT.subn(lambda _: f"\n{shared}\n\n", template(name))
    assert replaced == 1, name
    return text
