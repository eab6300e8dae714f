"""What runs on a node: inventory, telemetry, supervision. Imports nothing outside itself.

Python 3.8 and the standard library, h11 and pynvml; it runs from its zipapp
(`python3 -I agent.pyz serve`) and from the source tree with the same code.
"""

__version__ = "0.1.0"

PROTOCOL = 1
"""Version of the HTTP API; a console refuses an agent whose protocol it does not know."""
