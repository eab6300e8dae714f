"""`cluster.toml`: what the operator wants, validated before anything acts on it."""

from olol_tui.config.load import FieldProblem, at_field, load, parse
from olol_tui.config.schema import (
    ClusterConfig,
    EndpointConfig,
    EnginesConfig,
    GatewayConfig,
    ModelConfig,
    NodeConfig,
    SimulatedConfig,
    SplitConfig,
)

__all__ = [
    "ClusterConfig",
    "EndpointConfig",
    "EnginesConfig",
    "FieldProblem",
    "GatewayConfig",
    "ModelConfig",
    "NodeConfig",
    "SimulatedConfig",
    "SplitConfig",
    "at_field",
    "load",
    "parse",
]
