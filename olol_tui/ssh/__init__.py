"""Nodes over SSH: connections, host keys, channels, and the road that the controller takes.

`link.NodeLink` is what the rest of the program holds: the pair of connections to one node,
with its state. `connection.Connector` opens single connections by the rules that were
measured; `channels` and `stdio` carry streams over them; `hostkeys` decides whom we trust.
"""
