"""The one error of the lab."""

from __future__ import annotations


class LabError(Exception):
    """The lab could not do what it was asked; the text says what and why."""
