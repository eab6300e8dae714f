"""Snapshot, width, palette to segments. Pure."""
