"""What can go wrong on the way to a node, each with what to do next.

SSHError (a NodeError)
├── SSHConfigError       ~/.ssh/config or the node's entry cannot be used          final
├── NameUnknown          the host's name does not resolve
├── Unreachable          nothing answers, or it hangs up before it lets us in
├── NotSSH               something else than an SSH server listens there
├── NoCommonAlgorithm    the server speaks none of our algorithms                  final
├── HostKeyUnknown       never seen: ask, then `HostKeys.trust(error.offered)`     final
├── HostKeyChanged       not the key that we know                                  final
├── HostKeyRevoked       a key that known_hosts revokes                            final
├── HostKeysUnusable     our own list of host keys cannot be read or written       final
├── AuthFailed           no key was accepted; says which were tried                final
├── SessionsForbidden    the server runs no commands                               final
├── CommandFailed        a command ended with another status than 0
├── CommandTimeout       a command took too long and was ended
├── SftpMissing          the server has no SFTP subsystem
├── LinkDown             there is no connection now               (a ConnectionError too)
├── LinkLost             the connection broke under a stream (a ConnectionResetError too)
├── ChannelRefused       nothing listens there on the node (a ConnectionRefusedError too)
├── NoCapacity           the server opens no further channel              (an OSError too)
└── ForwardingForbidden  the server forbids forwarding, and there is no way around (ditto)

`final`: trying again by itself is useless, and on a server that bans repeated failures
harmful: the link waits until somebody calls `NodeLink.retry`.

The errors of streams are `OSError`s too, so that code written for sockets handles them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from olol_tui.errors import NodeError

if TYPE_CHECKING:
    from olol_tui.ssh.hostkeys import OfferedKey


class SSHError(NodeError):
    title = "SSH failed"
    final = False


class SSHConfigError(SSHError):
    title = "The SSH configuration cannot be used"
    final = True


class NameUnknown(SSHError):
    title = "The host's name is unknown"


class Unreachable(SSHError):
    title = "The host is not reachable"


class NotSSH(SSHError):
    title = "That is not an SSH server"


class NoCommonAlgorithm(SSHError):
    title = "No algorithm in common"
    final = True


class HostKeyUnknown(SSHError):
    """Nobody has vouched for this host yet.

    Attributes:
        offered: the key, its fingerprint and its picture; what `HostKeys.trust` takes.
    """

    title = "The host key is unknown"
    final = True

    def __init__(self, offered: OfferedKey) -> None:
        super().__init__(
            f"{offered.display} shows a {offered.key_type} key that was never seen: "
            f"{offered.fingerprint}",
            hint="Compare it with the machine's own: ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub",
        )
        self.offered = offered


class HostKeyChanged(SSHError):
    """Another key than the known one: a reinstalled machine, or somebody in between.

    Attributes:
        offered: the key that the host shows now.
        known: fingerprints that are on record, with the file and line of each.
    """

    title = "The host key changed"
    final = True

    def __init__(self, offered: OfferedKey, known: Sequence[str]) -> None:
        super().__init__(
            f"{offered.display}: known {', '.join(known)}; "
            f"offered {offered.key_type} {offered.fingerprint}",
            hint="If the machine was reinstalled: olol-tui hosts forget "
            f"{offered.forget_as}. If not, somebody may be listening: stop here.",
        )
        self.offered = offered
        self.known = tuple(known)


class HostKeyRevoked(SSHError):
    title = "The host key is revoked"
    final = True


class HostKeysUnusable(SSHError):
    title = "The list of host keys cannot be used"
    final = True


class AuthFailed(SSHError):
    """No key was accepted.

    Attributes:
        user: who we said we are.
        login: the same as words for `ssh`.
        tried: one line for each key: offered, locked, missing or unreadable.
    """

    title = "The host let us not in"
    final = True

    def __init__(
        self, where: str, user: str, login: str, tried: Sequence[str], detail: str = ""
    ) -> None:
        what = "; ".join(tried) if tried else "no key was found to offer"
        super().__init__(
            f"{where} accepted no key for {user}: {what}{f' ({detail})' if detail else ''}",
            hint=f"Put a public key there: ssh-copy-id {login}, "
            "or name another user or identity for this node.",
        )
        self.user = user
        self.tried = tuple(tried)


class SessionsForbidden(SSHError):
    title = "The host runs no commands"
    final = True


class CommandFailed(SSHError):
    title = "A command failed on the node"


class CommandTimeout(SSHError):
    title = "A command took too long on the node"


class SftpMissing(SSHError):
    title = "The host has no SFTP"


class LinkDown(SSHError, ConnectionError):
    title = "The node is not connected"


class LinkLost(SSHError, ConnectionResetError):
    title = "The SSH connection is lost"


class ChannelRefused(SSHError, ConnectionRefusedError):
    title = "Nothing listens there"


class NoCapacity(SSHError, OSError):
    title = "The host opens no further stream"


class ForwardingForbidden(SSHError, PermissionError):
    title = "The host forbids forwarding"
