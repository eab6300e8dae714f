"""What runs on a node. Imports nothing outside itself."""
