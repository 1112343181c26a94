"""A camera that speaks RTSP (RFC 2326) over one TCP connection: MPEG-4 video, a frame after the other."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from fractions import Fraction

import numpy as np

PAYLOAD = 96
MAX_PAYLOAD_BYTES = 1400
CLOCK_HZ = 90_000
FPS = 10


def packets_of(frames: int) -> Iterator[bytes]:
    """The encoded frames, each a key frame with the stream's headers, of grey levels 20, 40, …"""
    import av

    encoder = av.CodecContext.create("mpeg4", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.gop_size = 160, 120, "yuv420p", 1
    encoder.framerate = Fraction(FPS)
    for number in range(1, frames + 1):
        frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), 20 * number, np.uint8), format="rgb24")
        frame.pts = number
        yield from map(bytes, encoder.encode(frame))


def rtp(data: bytes, number: int, sequence: int) -> Iterator[bytes]:
    """A frame in packets of RTP (RFC 6416), each in RTSP's interleaved form."""
    pieces = [data[at : at + MAX_PAYLOAD_BYTES] for at in range(0, len(data), MAX_PAYLOAD_BYTES)]
    for index, piece in enumerate(pieces):
        marker = 0x80 if index == len(pieces) - 1 else 0
        head = struct.pack(">BBHII", 0x80, marker | PAYLOAD, sequence + index, number * CLOCK_HZ // FPS, 1)
        yield struct.pack(">cBH", b"$", 0, len(head) + len(piece)) + head + piece


@asynccontextmanager
async def open_camera(frames: int) -> AsyncIterator[str]:
    """The URL of a camera that sends so many frames to each caller, and then ends the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
                method, base = lines[0].split()[:2]
                fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
                sdp = (
                    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\n"
                    f"m=video 0 RTP/AVP {PAYLOAD}\r\na=rtpmap:{PAYLOAD} MP4V-ES/{CLOCK_HZ}\r\na=control:track1\r\n"
                )
                body = sdp if method == "DESCRIBE" else ""
                head = {
                    "OPTIONS": "Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n",
                    "DESCRIBE": "Content-Type: application/sdp\r\n"
                    f"Content-Base: {base}/\r\nContent-Length: {len(body)}\r\n",
                    "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
                }.get(method, "Session: 1\r\n")
                writer.write(f"RTSP/1.0 200 OK\r\nCSeq: {fields['cseq']}\r\n{head}\r\n{body}".encode())
                if method == "PLAY":
                    break
            sequence = 0
            for number, data in enumerate(packets_of(frames)):
                for packet in rtp(data, number, sequence):
                    writer.write(packet)
                    sequence += 1
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the caller left
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"rtsp://me:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}/live"
    finally:
        server.close()
