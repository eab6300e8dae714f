"""An ops console and gateway for clusters of Ollama machines."""

__version__ = "0.1.0"
