"""The HTTP endpoint that clients talk to."""
