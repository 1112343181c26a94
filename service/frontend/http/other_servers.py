"""What requests need of their connection where another ASGI server than this service's own accepts connections.

The service's own connections (`protocol.py`) notify a request when they end, which costs nothing. Any other server has
only ASGI's message about it, which a task of each request waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType

from starlette.types import Receive

from service.frontend.http.connections import Disconnect


class ReceivedDisconnect(Disconnect):
    """Cancels the work for a request when `receive` returns http.disconnect.

    The part of a body that arrives during the work is dropped: a request reads its body before its work, or not at all.
    """

    __slots__ = ("_receive", "_watching")

    def __init__(self, receive: Receive) -> None:
        super().__init__()
        self._receive = receive
        self._watching: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        super().__enter__()
        self._watching = asyncio.create_task(self._watch(), name="disconnect")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        super().__exit__(kind, error, trace)

    async def _watch(self) -> None:
        # A server may end a connection by an error of its own, which the answer meets as well.
        with contextlib.suppress(OSError):
            while (await self._receive())["type"] != "http.disconnect":
                pass
        self.notify()


class OtherConnection:
    """The connection of a request that another ASGI server accepted."""

    __slots__ = ("disconnect",)

    def __init__(self, receive: Receive) -> None:
        self.disconnect: Disconnect = ReceivedDisconnect(receive)
