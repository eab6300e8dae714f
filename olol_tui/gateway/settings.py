"""What the configuration makes of a gateway, and how another one takes its place while it serves.

Two steps: everything that can be wrong is found before anything is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from olol_tui.config import FieldProblem, GatewayConfig
from olol_tui.errors import ConfigError
from olol_tui.gateway.access import Access
from olol_tui.gateway.message import Limits
from olol_tui.gateway.tls import TlsFiles
from olol_tui.routing.patience import Patience
from olol_tui.routing.policy import policies

if TYPE_CHECKING:
    from olol_tui.gateway.gateway import Gateway

_AT_START = ("host", "port")


class Settings:
    """Of one gateway. `limits`, `patience` and `access` are read anew at every use.

    Raises:
        ConfigError: the TLS files cannot be used.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self._started = config
        self.limits = _limits(config)
        self.patience = _patience(config)
        self.access = Access(config.host, config.cors_origins)
        self.tls = TlsFiles(config.tls_cert, config.tls_key) if config.tls_cert else None

    def prepare(self, config: GatewayConfig, gateway: Gateway) -> Callable[[], tuple[str, ...]]:
        """Look whether the gateway could be so; nothing changes yet.

        Returns:
            What makes it so; that tells what of it holds from the next start only.

        Raises:
            FieldProblem: the TLS files cannot be used.
        """
        use_tls: Callable[[], None] = _nothing
        if self.tls is not None and config.tls_cert:
            try:
                use_tls = self.tls.prepare(config.tls_cert, config.tls_key)
            except ConfigError as error:
                raise FieldProblem(("gateway", "tls_cert"), error.message) from error

        def settle() -> tuple[str, ...]:
            self.config = config
            self.limits = _limits(config)
            self.patience = _patience(config)
            self.access = Access(self._started.host, config.cors_origins)
            use_tls()
            gateway.queue.room.max_queued = config.max_queue
            gateway.queue.room.max_per_flow = config.max_queue_per_key
            gateway.queue.policy_of = policies(config.policy, config.model_policies)
            gateway.gate.connections_per_key = config.max_connections_per_key
            if (archive := gateway.archive) is not None:
                archive.reconfigure(
                    max_rows=config.records_max,
                    max_age_s=config.records_days * 86400,
                    access_log=config.access_log,
                )
            return tuple(self._later(config))

        return settle

    def _later(self, config: GatewayConfig) -> list[str]:
        started = self._started
        told = [
            f"gateway.{name} = {_shown(getattr(config, name))} holds from the next start; "
            f"now it is {_shown(getattr(started, name))}"
            for name in _AT_START
            if getattr(config, name) != getattr(started, name)
        ]
        if bool(config.tls_cert) != (self.tls is not None):
            speaks = "https" if self.tls is None else "plain http"
            told.append(f"gateway.tls_cert: clients speak {speaks} from the next start")
        return told


def _limits(config: GatewayConfig) -> Limits:
    return Limits(
        body_bytes=config.max_body_bytes,
        header_bytes=config.max_header_bytes,
        header_s=config.header_timeout_s,
        body_s=config.body_timeout_s,
        idle_s=config.idle_timeout_s,
        connections=config.max_connections,
    )


def _patience(config: GatewayConfig) -> Patience:
    return Patience(
        first_byte_s=config.first_byte_timeout_s,
        load_s=config.load_timeout_s,
        token_s=config.token_timeout_s,
        probe_after_s=config.probe_after_s,
    )


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _nothing() -> None:
    pass
