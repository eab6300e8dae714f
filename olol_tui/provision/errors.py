"""What can go wrong while a machine is made a node.

ProvisionError (a NodeError)
├── NodeTrouble     a node-side errand failed, in its own words; `kind` names the fault
├── NodeMute        an errand gave no answer at all
├── PlanRefused     the facts rule it out: no Python, no room, a read-only home …
├── UploadFailed    bytes did not get there
├── ArchiveError    the console cannot get, check or re-pack the engine's archive
└── BuildFailed     a compiler on the node failed, or was ended
"""

from __future__ import annotations

from olol_tui.errors import NodeError


class ProvisionError(NodeError):
    title = "The node cannot be provisioned"


class NodeTrouble(ProvisionError):
    """Attributes:
    kind: `full`, `read-only`, `denied`, `squatted`, `damaged`, …: for code, not for people.
    """

    def __init__(self, message: str, *, hint: str = "", kind: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class NodeMute(ProvisionError):
    title = "The node gives no answer"


class PlanRefused(ProvisionError):
    title = "The machine cannot be a node"


class UploadFailed(ProvisionError):
    title = "The upload failed"


class ArchiveError(ProvisionError):
    title = "The engine's archive cannot be used"


class BuildFailed(ProvisionError):
    title = "The build on the node failed"
