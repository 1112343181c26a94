"""Video files, and RTSP and other addresses of FFmpeg, through PyAV: the extra `video`."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from functools import partial
from typing import Any

import numpy as np
import simplejpeg

from service.cli.sources.frame import Frame, SourceLost, shown

LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp")
OPEN_S, SILENCE_S = 15.0, 15.0
"""How long an address may take to answer, and then to send nothing."""
READ_AHEAD = 2
"""Decoded frames that wait for the event loop."""
MAX_BAD_PACKETS = 100
"""In a row that cannot be decoded: after a loss a stream is broken until its next key frame."""
JPEG_QUALITY = 92
"""Frames are sent as JPEG: a frame of a video has lost more than this takes."""


class VideoSource:
    """A video file, whose frames wait until they are read, or an address."""

    def __init__(self, source: str) -> None:
        """Raises ModuleNotFoundError: PyAV is not installed."""
        import av  # an extra

        av.logging.set_level(None)  # errors are raised; FFmpeg would print them, too
        self._av: Any = av
        self._source = source
        self._shown = shown(source)
        self.is_live = self.resumes = source.partition("://")[0] in LIVE_SCHEMES

    async def frames(self) -> AsyncGenerator[Frame, None]:
        """A file ends; an address that ends is lost. Raises SourceLost."""
        read: asyncio.Queue[Any] = asyncio.Queue()
        room, stopped = threading.Semaphore(READ_AHEAD), threading.Event()
        # A thread of its own that nobody waits for: FFmpeg may block for as long as an address sends nothing.
        reading = (asyncio.get_running_loop(), read, room, stopped)
        threading.Thread(target=self._read, args=reading, name="video", daemon=True).start()
        try:
            while (frame := await read.get()) is not None:
                if isinstance(frame, Exception):
                    raise frame
                room.release()
                position_s = None if self.is_live else frame.time
                fields = {} if position_s is None else {"position_s": round(position_s, 3)}
                yield Frame(partial(_encoded, frame), time.time(), position_s, fields)
        finally:
            stopped.set()
            room.release()
        if self.is_live:
            raise SourceLost(f"{self._shown}: the stream ended")

    def _read(
        self,
        loop: asyncio.AbstractEventLoop,
        read: asyncio.Queue[Any],
        room: threading.Semaphore,
        stopped: threading.Event,
    ) -> None:
        """Put the decoded frames into `read`, and None or an error at their end."""
        last: Exception | None = None
        with contextlib.suppress(RuntimeError):  # the loop is closed: the command has ended
            try:
                for frame in self._decoded():
                    room.acquire()
                    if stopped.is_set():
                        return
                    loop.call_soon_threadsafe(read.put_nowait, frame)
            except Exception as error:
                last = error
            loop.call_soon_threadsafe(read.put_nowait, last)

    def _decoded(self) -> Iterator[Any]:
        error = self._av.FFmpegError
        options = {"rtsp_transport": "tcp"} if self._source.startswith("rtsp") else {}
        try:
            with self._av.open(self._source, options=options, timeout=(OPEN_S, SILENCE_S)) as container:
                if not container.streams.video:
                    raise SourceLost(f"{self._shown}: has no video")
                bad = 0
                for packet in container.demux(container.streams.video[0]):
                    try:
                        frames = packet.decode()
                    except self._av.error.InvalidDataError:
                        bad += 1
                        if bad > MAX_BAD_PACKETS:
                            raise
                        continue
                    bad = 0
                    yield from frames
        except error as problem:
            raise SourceLost(f"{self._shown}: {problem.strerror.lower()}") from None


def _encoded(frame: Any) -> bytes:  # noqa: ANN401  (PyAV's)
    """A frame as JPEG, upright."""
    pixels = frame.to_ndarray(format="rgb24")
    upright = np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))
    jpeg: bytes = simplejpeg.encode_jpeg(upright, JPEG_QUALITY, "RGB")
    return jpeg
