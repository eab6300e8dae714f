"""What clients speak, each in its own words: Ollama, OpenAI, Anthropic, and llama-server behind.

Pure: parsed fields in, bytes out. No sockets, no asyncio, no clock of its own.
"""
