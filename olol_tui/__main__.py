"""`python -m olol_tui`, and the entry point of the `olol-tui` command."""

from __future__ import annotations

import sys

from olol_tui.cli import main

if __name__ == "__main__":
    sys.exit(main())
