"""Runs on the node, sent over at every call: standard library, Python 3.8, no state.

Imports nothing outside itself. Each module has functions that take one dict and return
one; `olol_tui.provision.helper` says which is called with what.
"""
