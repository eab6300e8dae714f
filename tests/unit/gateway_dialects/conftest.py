"""Puts this directory on the path: the tests here share `dialect_fakes`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
