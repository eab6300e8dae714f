"""When to start a crashed engine again, and when to stop trying. Pure: time is an argument."""

from __future__ import annotations

from collections import deque

from .spec import Policy


class Backoff:
    """Crashes of one engine: 1, 2, 4 … 60 s apart; too many in a while and it is over."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._delay_s = policy.backoff_first_s
        self._crashes: deque[float] = deque()

    @property
    def crashes(self) -> int:
        """Within the window that ended with the last crash."""
        return len(self._crashes)

    def crashed(self, now: float, ready_at: float | None) -> float | None:
        """Account for a crash.

        Args:
            now: monotonic seconds.
            ready_at: since when it had been ready, None if it never was.

        Returns:
            Seconds to wait before the next start, None to give up.
        """
        policy = self._policy
        if ready_at is not None and now - ready_at >= policy.healthy_after_s:
            self._delay_s = policy.backoff_first_s
        self._crashes.append(now)
        while now - self._crashes[0] > policy.crash_window_s:
            self._crashes.popleft()
        if len(self._crashes) >= policy.crash_limit:
            return None
        delay_s = self._delay_s
        self._delay_s = min(policy.backoff_max_s, delay_s * 2)
        return delay_s

    def forgive(self) -> None:
        """The operator asked for a fresh start."""
        self._crashes.clear()
        self._delay_s = self._policy.backoff_first_s
