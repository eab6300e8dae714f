"""The zipapp's own importer: every module is compiled once.

To tell a module's path, `zipimport` of Python 3.10 and later compiles it, and compiles it again
to run it. That is a quarter of the time in which an agent starts, and an engine of its own.
"""

from __future__ import annotations

import sys
from zipimport import zipimporter


class Importer(zipimporter):
    """Tells a module's path by its name."""

    def get_filename(self, fullname: str) -> str:
        path = f"{self.archive}/{self.prefix}{fullname.rpartition('.')[2]}"
        return path + ("/__init__.py" if self.is_package(fullname) else ".py")


def install(archive: str) -> None:
    """Have modules of a zipapp imported so from now on."""
    sys.path_hooks.insert(0, Importer)
    for path in [path for path in sys.path_importer_cache if path.startswith(archive)]:
        del sys.path_importer_cache[path]
