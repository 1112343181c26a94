"""A front-end whose messages the test writes, over either transport."""

from __future__ import annotations

import asyncio
from typing import Self

from service.wire.addresses import open_link
from service.wire.curve import PLAIN, WireOptions
from service.wire.messages import ToFrontEnd, decode_to_front_end
from service.wire.transport import Frames, LinkEvents
from tests.waiting import PATIENCE_S


class RawFrontEnd:
    """Use as an async context manager: connects on entry."""

    def __init__(self, address: str, options: WireOptions = PLAIN) -> None:
        self.connected = asyncio.Event()
        self.losses: list[str] = []
        self._received: asyncio.Queue[ToFrontEnd] = asyncio.Queue()
        events = LinkEvents(self._on_message, self.connected.set, self.losses.append)
        self._link = open_link(address, options, events)

    async def __aenter__(self) -> Self:
        await self._link.__aenter__()
        async with asyncio.timeout(PATIENCE_S):
            await self.connected.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._link.__aexit__()

    def send(self, header: bytes, *frames: bytes) -> None:
        """Raises NotSent."""
        self._link.send(header, *(memoryview(frame) for frame in frames))

    async def receive(self) -> ToFrontEnd:
        """The next message of the worker."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._received.get()

    def _on_message(self, header: memoryview, _frames: Frames) -> None:
        self._received.put_nowait(decode_to_front_end(header))
