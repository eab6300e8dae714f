"""Fixtures of the end-to-end tests: they need root, and are skipped with the reason without."""

from tests.lab.fixtures import lab, lab_machine, module_lab

__all__ = ["lab", "lab_machine", "module_lab"]
