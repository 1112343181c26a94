"""Files that are not decoded: the error names what came, and what to send."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from model.containers.signatures import SIGNATURES
from model.decode import decode, read_header
from model.errors import UnsupportedFormat
from tests.model.picture_files import PHOTO, PNG_SIGNATURE, bmp, encoded, png_chunk
from tests.model.test_decode import LIMITS

JPEG = encoded(PHOTO, "JPEG")
FRAME = JPEG.index(b"\xff\xc0")


def with_frame(marker: int, precision: int = 8, height: int = PHOTO.height) -> bytes:
    """A JPEG whose frame header declares another coding process, other bits a sample, or another height."""
    changed = struct.pack(">BHBH", marker, 17, precision, height)
    return JPEG[: FRAME + 1] + changed + JPEG[FRAME + 1 + len(changed) :]


BASELINE = r"save it as a baseline or progressive JPEG of 8 bits$"
UNCOMPRESSED = "is not supported; save it uncompressed, or send one of JPEG, PNG"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (with_frame(0xC1, precision=12), f"a JPEG with 12 bits a sample.*{BASELINE}"),
        (with_frame(0xC3, precision=16), f"a JPEG with 16 bits a sample.*{BASELINE}"),
        (with_frame(0xCB), f"a lossless arithmetic JPEG.*{BASELINE}"),
        (with_frame(0xC5), f"a hierarchical JPEG.*{BASELINE}"),
        (JPEG[:2] + b"\xff\xde" + JPEG[FRAME + 2 :], f"a hierarchical JPEG.*{BASELINE}"),
        (with_frame(0xF7), f"a JPEG-LS picture.*{BASELINE}"),
        (with_frame(0xC0, height=0), rf"a JPEG whose height follows its pixels \(DNL\).*{BASELINE}"),
        (
            PNG_SIGNATURE + png_chunk(b"CgBI", bytes(4)) + encoded(PHOTO, "PNG")[8:],
            "a PNG in Apple's CgBI form.*xcrun pngcrush -revert-iphone-optimizations$",
        ),
        (
            bmp(np.zeros((4, 4), np.uint8), 8, 2),
            f"^compressed BMP {UNCOMPRESSED}",
        ),
        (
            bmp(np.zeros((4, 4), np.uint8), 8, 4),
            f"^JPEG-compressed BMP {UNCOMPRESSED}",
        ),
        (
            bmp(np.zeros((4, 4), np.uint8), 8, 5),
            f"^PNG-compressed BMP {UNCOMPRESSED}",
        ),
        (
            bmp(np.zeros((4, 4), np.uint8), 8, 11),
            f"^compressed BMP {UNCOMPRESSED}",
        ),
        (
            bmp(np.zeros((4, 4), np.uint8), 8, 3, header_bytes=64),
            f"^compressed BMP {UNCOMPRESSED}",
        ),
        (
            bmp(np.zeros((4, 4), np.uint16), 16, 3, (0xF0F0, 0xF00, 0xF)),
            "a BMP with the bit mask 0xf0f0 is not supported; save it with 24 bits a pixel$",
        ),
        (
            bmp(np.zeros((4, 4), np.uint16), 16, 3, (0xFF0000, 0xFF00, 0xFF)),
            "a BMP with the bit mask 0xff0000 is not supported",
        ),
    ],
    ids=[
        "12 bits",
        "16 bits",
        "lossless arithmetic",
        "hierarchical",
        "hierarchical, its first frame is not",
        "JPEG-LS",
        "DNL",
        "CgBI",
        "run lengths of other bits",
        "BMP of JPEG",
        "BMP of PNG",
        "BMP of CMYK",
        "BMP of OS/2",
        "divided mask",
        "mask of more bits",
    ],
)
def test_a_form_that_is_not_decoded_is_named(data: bytes, words: str) -> None:
    """A whole file of a supported format in an unusual form is not called corrupt: the header shows the form."""
    with pytest.raises(UnsupportedFormat, match=words):
        read_header(data, LIMITS)


KINDS = {
    **{kind: signature for signature, kind in SIGNATURES},
    "an AVI video": b"RIFF\0\0\0\0AVI LIST",
    "a WAVE sound": b"RIFF\0\0\0\0WAVEfmt ",
    "a camera's raw file (CR3)": b"\0\0\0\x18ftypcrx ",
    "a QuickTime video": b"\0\0\0\x14ftypqt  ",
    "an MP4 video": b"\0\0\0\x18ftypisom",
    "a Netpbm picture (PBM, PGM, PPM, PAM or PFM)": encoded(PHOTO, "PPM"),
    "a JPEG 2000 picture": encoded(PHOTO, "JPEG2000"),
    "a Windows icon (ICO)": encoded(PHOTO, "ICO"),
    "a DirectDraw surface (DDS)": encoded(PHOTO, "DDS"),
    "a PDF document": encoded(PHOTO, "PDF"),
    "a PostScript file": encoded(PHOTO, "EPS"),
    "an SGI picture": encoded(PHOTO, "SGI"),
    "an Apple icon (ICNS)": encoded(PHOTO, "ICNS"),
    "a DICOM file": bytes(128) + b"DICM",
    "an SVG drawing": b'\xef\xbb\xbf\n<?xml version="1.0"?>\n<!-- drawn by hand -->\n<svg xmlns="..."/>',
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_format_is_named(kind: str) -> None:
    """The error has the format that came, and the supported ones."""
    with pytest.raises(UnsupportedFormat) as caught:
        read_header(KINDS[kind].ljust(200, b"\0"), LIMITS)
    assert str(caught.value).startswith(f"this is {kind}, which is not supported; send one of JPEG, PNG")


@pytest.mark.parametrize(
    "data", [b"<?xml version='1.0'?><feed/>", b"P7 is a good grade", b"\0\0\0\x14ftypzzzz", b"Pa\n"]
)
def test_what_only_looks_like_another_format_is_not_named(data: bytes) -> None:
    """Text and unknown boxes are of no known format."""
    with pytest.raises(UnsupportedFormat, match=r"^the image format is not supported"):
        decode(data, LIMITS)
