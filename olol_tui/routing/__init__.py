"""Which engine takes a request, and when. Pure."""
