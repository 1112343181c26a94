"""A front-end's link and a worker's listener at ipc:// addresses: Unix sockets, which only processes with access to
their files reach."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import socket
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

import structlog

from service.observability.logs import LogLimit
from service.wire.message_stream import MessageStream, StreamRefused, Streams
from service.wire.transport import (
    IPC,
    LINGER_S,
    MAX_RECONNECT_S,
    RECONNECT_S,
    Frames,
    LinkEvents,
    NotSent,
    Send,
)

MAX_CONNECTIONS = 1024
"""Of one worker."""
BACKLOG = 128
CHECK_S = 1.0
"""Between two looks at the file of a listening socket, and from a failure to accept until the next attempt."""

_NO_WORKER = (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN)
"""Of an attempt to connect: none listens, or more front-ends connect at once than it can accept."""

log = structlog.get_logger(__name__)


class UnixLink:
    """A `Link` to a worker at an ipc:// address."""

    def __init__(self, address: str, max_frame_bytes: int, events: LinkEvents) -> None:
        self._name = _name(address)
        self._max_frame_bytes = max_frame_bytes
        self._events = events
        self._failure = ""
        """Why the last attempt to connect failed; nothing where none listens at the address."""
        self.send: Send = _no_connection

    async def __aenter__(self) -> Self:
        self._connecting = asyncio.create_task(self._keep_connected(), name="worker-connection")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._connecting.cancel()
        await asyncio.wait([self._connecting])

    async def _keep_connected(self) -> None:
        pause_s = RECONNECT_S
        while True:
            if await self._use_connection():
                pause_s = RECONNECT_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_RECONNECT_S)

    async def _use_connection(self) -> bool:
        """Connect, and wait for the end of the connection. Whether there was one."""
        connected = socket.socket(socket.AF_UNIX)
        try:
            connected.setblocking(False)
            connected.connect(self._name)  # at once, or not at all
        except OSError as refusal:
            connected.close()
            self._on_failure(refusal)
            return False
        ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        was_open = False

        def on_open() -> None:
            nonlocal was_open
            was_open = True
            self._failure = ""
            self.send = stream.send
            self._events.on_connected()

        def on_end(error: Exception | None) -> None:
            # In the same turn of the loop: nothing is sent in between.
            self.send = _no_connection
            self._failure = str(error) if isinstance(error, StreamRefused) else ""
            if was_open or self._failure:
                self._events.on_lost(self._failure)
            if not ended.done():
                ended.set_result(error)

        stream = MessageStream(connected, self._max_frame_bytes, on_open, self._events.on_message, on_end)
        try:
            cause = await ended
        finally:
            self.send = _no_connection
            stream.abort()
        if cause is not None and not isinstance(cause, (OSError, StreamRefused)):
            log.error("a message of a worker was not handled", exc_info=cause)
        return was_open

    def _on_failure(self, error: OSError) -> None:
        """Report once why no connection can be made, and once that none listens any more."""
        failure = "" if error.errno in _NO_WORKER else f"its socket: {error.strerror or error}"
        if failure != self._failure:
            self._failure = failure
            self._events.on_lost(failure)


class UnixListener:
    """A `Listener` at an ipc:// address. A file of its own that was deleted is made again."""

    def __init__(self, address: str, max_frame_bytes: int) -> None:
        self.address = address
        self._name = _name(address)
        self._max_frame_bytes = max_frame_bytes
        self._file: tuple[int, int] | None = None
        """Device and inode of the socket's file."""
        self._numbers = itertools.count(1)
        self._streams = Streams()
        self.send = self._streams.send
        self._all_ended: asyncio.Event | None = None
        self._malformed, self._refused = LogLimit(), LogLimit()

    async def __aenter__(self) -> Self:
        self._listening = self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        self._remove_file()
        self._all_ended = asyncio.Event()
        for stream in self._streams.values():
            stream.finish()
        if self._streams:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await self._all_ended.wait()
        for stream in self._streams.values():
            stream.abort()
        self._streams.clear()

    async def run(
        self, on_message: Callable[[bytes, memoryview, Frames], None], on_drained: Callable[[], None]
    ) -> None:
        """See `Listener.run`."""
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def admit(connected: socket.socket) -> None:
            if len(self._streams) >= MAX_CONNECTIONS:
                connected.close()
                if (repeated := self._refused.due("")) is not None:  # it tries again, several times a second
                    log.error(
                        "too many front-ends are connected; one was refused", limit=MAX_CONNECTIONS, repeated=repeated
                    )
                return
            identity = next(self._numbers).to_bytes(8, "big")
            self._streams[identity] = MessageStream(
                connected,
                self._max_frame_bytes,
                _nothing,
                partial(on_message, identity),
                partial(on_end, identity),
                on_drained,
            )

        def on_end(identity: bytes, error: Exception | None) -> None:
            self._streams.pop(identity, None)
            if not self._streams and self._all_ended is not None:
                self._all_ended.set()
            if isinstance(error, StreamRefused):
                if (repeated := self._malformed.due(str(error))) is not None:
                    log.error("a front-end was disconnected", error=str(error), repeated=repeated)
            elif error is not None and not isinstance(error, OSError) and not failed.done():
                failed.set_exception(error)

        accepting = asyncio.create_task(self._keep_accepting(admit), name="worker-address")
        try:
            await failed
        finally:
            accepting.cancel()
            await asyncio.wait([accepting])
            for stream in self._streams.values():
                stream.on_message = _ignore

    async def _keep_accepting(self, admit: Callable[[socket.socket], None]) -> None:
        """Accept connections, and listen again when something deleted the socket's file.

        Connections live on without the file; new ones, of a restarted front-end, need it.
        """
        is_lost = False
        while True:
            try:
                async with asyncio.timeout(CHECK_S):
                    while True:
                        await _readable(self._listening)
                        # Without `await`: what the event loop has accepted when this is cancelled would be lost.
                        try:
                            connected, _ = self._listening.accept()
                        except BlockingIOError:  # the caller has left
                            continue
                        connected.setblocking(False)
                        admit(connected)
            except TimeoutError:
                pass
            except OSError as error:
                log.error("the worker cannot accept a connection", error=error.strerror)
                await asyncio.sleep(CHECK_S)
            if not self._file_is_missing():
                continue
            try:
                listening = self._listen()
            except OSError as error:
                if not is_lost:
                    log.error(
                        "the worker's socket was deleted and cannot be made again",
                        path=self._name,
                        error=error.strerror,
                    )
                is_lost = True
            else:
                self._listening.close()
                self._listening = listening
                is_lost = False
                log.warning("the worker's socket was deleted; made it again", path=self._name)

    def _listen(self) -> socket.socket:
        """Raises OSError."""
        path = None if self._name.startswith("\0") else Path(self._name)
        listening = socket.socket(socket.AF_UNIX)
        try:
            if path is not None:
                with contextlib.suppress(FileNotFoundError):  # a process that was killed leaves its socket
                    if stat.S_ISSOCK(path.stat().st_mode):
                        path.unlink()
            listening.bind(self._name)
            listening.listen(BACKLOG)
            listening.setblocking(False)
            self._file = None if path is None else _identity(path)
        except OSError:
            listening.close()
            raise
        return listening

    def _remove_file(self) -> None:
        path = Path(self._name)
        with contextlib.suppress(OSError):  # it was deleted
            if self._file is not None and _identity(path) == self._file:  # else another worker has taken its place
                path.unlink()

    def _file_is_missing(self) -> bool:
        """Whether the socket's file was deleted and may be made again."""
        if self._file is None:
            return False
        path = Path(self._name)
        try:
            # A folder of another user, put in the place of this one, must not get the socket.
            return not path.exists() and path.parent.stat().st_uid in (0, os.geteuid())
        except OSError:  # the folder was deleted as well
            return True


async def _readable(listening: socket.socket) -> None:
    """Wait until there is a connection to accept. It may be cancelled in any turn of the event loop."""
    loop, found = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(listening, found.set)
    try:
        await found.wait()
    finally:
        loop.remove_reader(listening)


def _name(address: str) -> str:
    """What the system calls of sockets take. @ begins the name of a socket without a file."""
    name = address.removeprefix(IPC)
    return f"\0{name[1:]}" if name.startswith("@") else name


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _no_connection(_header: bytes, *_frames: memoryview) -> None:
    raise NotSent("there is no connection")


def _ignore(_header: memoryview, _frames: Frames) -> None:
    """A worker that closes reads no more jobs."""


def _nothing() -> None:
    pass
