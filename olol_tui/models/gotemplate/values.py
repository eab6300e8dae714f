"""What templates are filled in with, beside the plain types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


class _NoValue:
    pass


NO_VALUE: Final = _NoValue()
"""Where nothing was given, which is not nil."""


@dataclass(frozen=True, slots=True)
class Record:
    """A struct: another field than these is a mistake of the template."""

    fields: Mapping[str, Any]
