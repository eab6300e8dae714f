"""Request bodies that came compressed: OpenAI's newer clients send theirs as zstd.

The body is needed to see which model is asked for, and goes on to the engine as it is then:
not every engine can read zstd.
"""

from __future__ import annotations

import asyncio
import sys

from olol_tui.gateway.dialects.errors import BadRequest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_WINDOW_LOG = 23
"""8 MiB, as Ollama: what a frame may ask us to remember while it is read."""
_AT_ONCE_BYTES = 64 * 1024
"""Up to here it is faster than handing it to a thread."""


async def inflate(encoding: bytes, body: bytes, limit_bytes: int) -> bytes:
    """A body as it was before it was compressed, without holding up other requests.

    Raises:
        BadRequest: another encoding (415), more than the limit (413), or not zstd at all.
    """
    if encoding.strip().lower() == b"identity":
        return body
    if encoding.strip().lower() != b"zstd":
        name = encoding.decode("latin-1")
        raise BadRequest(f"Content-Encoding {name!r} is not supported, zstd is", status=415)
    if len(body) <= _AT_ONCE_BYTES:
        return _inflate(body, limit_bytes)
    return await asyncio.to_thread(_inflate, body, limit_bytes)


def _inflate(body: bytes, limit_bytes: int) -> bytes:
    options = {int(zstd.DecompressionParameter.window_log_max): _WINDOW_LOG}
    reader = zstd.ZstdDecompressor(options=options)
    try:
        out = reader.decompress(body, max_length=limit_bytes + 1)
    except zstd.ZstdError as error:
        raise BadRequest(f"failed to decompress zstd body: {error}") from None
    if len(out) > limit_bytes:
        raise BadRequest(
            f"request body is larger than the limit of {limit_bytes} bytes", status=413
        )
    if not reader.eof or reader.unused_data:
        raise BadRequest("failed to decompress zstd body: it is cut off or followed by more")
    return out
