"""The first refusals of a process, said with what was seen; all of them stand beside the shards.

log = RejectLog()
log.note("00000", Rejected("000000017", "image_count", "record 17: …"))
"""

import logging

from data_pipeline.raw.shards import Rejected

MAX_LOGGED = 20  # a process
_log = logging.getLogger(__name__)


class RejectLog:
    """Warns of each refusal up to `MAX_LOGGED`, and then once more."""

    def __init__(self) -> None:
        self._num = 0

    def note(self, unit: str, rejected: Rejected) -> None:
        """Say that a sample of this shard is not used, and why."""
        self._num += 1
        if self._num <= MAX_LOGGED:
            why = f"{rejected.reason} ({rejected.detail})" if rejected.detail else rejected.reason
            _log.warning("%s: sample %r rejected: %s", unit, rejected.key, why)
        elif self._num == MAX_LOGGED + 1:
            _log.warning("further rejected samples are listed beside the shards only")
