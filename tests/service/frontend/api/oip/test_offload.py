from __future__ import annotations

import threading

from service.frontend.api.oip.inference import OFFLOAD_FROM_BYTES, offload


async def test_only_what_is_brief_is_done_here() -> None:
    """The loop does what takes it less time than a thread would cost, and nothing longer."""
    here = threading.get_ident()
    assert await offload(threading.get_ident, OFFLOAD_FROM_BYTES) == here
    assert await offload(threading.get_ident, OFFLOAD_FROM_BYTES + 1) != here
