"""`python -m …agent.simengine --port P --id ID --config JSON`: one engine without agent."""

from __future__ import annotations

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
