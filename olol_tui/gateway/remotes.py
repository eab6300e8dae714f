"""From where models may be fetched, and where they may be sent.

A name can hold the address of a registry, and engines follow it: without a list, whoever may pull
could make an engine ask any address that it can reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from olol_tui.gateway.dialects.errors import BadRequest
from olol_tui.models.names import is_cloud, registry_of


def check_remote(name: str, body: dict[str, Any], registries: Sequence[str]) -> None:
    """Refuse a name that leads elsewhere.

    Args:
        registries: hosts that are allowed; `http://` before one: without TLS too; `*`: all.

    Raises:
        BadRequest: 400 for what is no name, 403 for one that leads to a registry not allowed.
    """
    if is_cloud(name):
        raise BadRequest(
            f"cloud models are disabled: {name!r} would leave this cluster", status=403
        )
    try:
        host = registry_of(name)
    except ValueError:
        raise BadRequest("invalid model name") from None
    plain = f"http://{host}" in registries
    if not (plain or host in registries or "*" in registries):
        raise BadRequest(
            f"the registry {host} is not one of gateway.registries: {', '.join(registries)}",
            status=403,
        )
    if body.get("insecure") and not plain:
        raise BadRequest(
            f"an insecure connection to {host} is refused: write http://{host} into "
            "gateway.registries where it is meant",
            status=403,
        )
