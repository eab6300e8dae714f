"""Demand and capacity to a plan, with reasons. Pure."""
