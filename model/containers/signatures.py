"""Names of the formats that are not supported, by their first bytes, for errors."""

from __future__ import annotations

import re

SIGNATURES = (
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"II\xbc", "a JPEG XR picture"),
    (b"IIRO", "a camera's raw file (ORF)"),
    (b"IIRS", "a camera's raw file (ORF)"),
    (b"MMOR", "a camera's raw file (ORF)"),
    (b"IIU\0", "a camera's raw file (RW2)"),
    (b"8BPS", "a Photoshop file (PSD)"),
    (b"gimp xcf", "a GIMP file (XCF)"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript file"),
    (b"\0\0\1\0", "a Windows icon (ICO)"),
    (b"\0\0\2\0", "a Windows cursor (CUR)"),
    (b"icns", "an Apple icon (ICNS)"),
    (b"v/1\1", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance HDR picture"),
    (b"#?RGBE", "a Radiance HDR picture"),
    (b"qoif", "a QOI picture"),
    (b"DDS ", "a DirectDraw surface (DDS)"),
    (b"\x8aMNG", "an MNG animation"),
    (b"\x8bJNG", "a JNG picture"),
    (b"BPG\xfb", "a BPG picture"),
    (b"AT&TFORM", "a DjVu document"),
    (b"SIMPLE  =", "a FITS picture"),
    (b"\x59\xa6\x6a\x95", "a Sun raster picture"),
    (b"\1\xda", "an SGI picture"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file (RAF)"),
    (b"FOVb", "a camera's raw file (X3F)"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
)
"""How files begin, and what they are."""
RIFF_KINDS = {b"AVI ": "an AVI video", b"WAVE": "a WAVE sound"}
BRANDS = {
    b"crx ": "a camera's raw file (CR3)",
    b"qt  ": "a QuickTime video",
    **dict.fromkeys((b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"avc1", b"mp41", b"mp42", b"M4V "), "an MP4 video"),
    **dict.fromkeys((b"3gp4", b"3gp5", b"3gp6"), "a 3GP video"),
}
"""Main brands of the ISO base media format."""
NETPBM = re.compile(rb"P[1-6Ff]\s+[0-9#]|P7\n[A-Z#]")
DICOM_OFFSET = 128
SEARCHED_TEXT = 1024
"""Bytes in which a text that begins as XML names SVG."""


def kind_of(data: bytes) -> str | None:
    """What a file that is not supported is, with its article; None if it is not known."""
    for signature, kind in SIGNATURES:
        if data.startswith(signature):
            return kind
    if data.startswith(b"RIFF"):
        return RIFF_KINDS.get(data[8:12])
    if data[4:8] == b"ftyp":
        return BRANDS.get(data[8:12])
    if NETPBM.match(data):
        return "a Netpbm picture (PBM, PGM, PPM, PAM or PFM)"
    if data[DICOM_OFFSET : DICOM_OFFSET + 4] == b"DICM":
        return "a DICOM file"
    text = data[:SEARCHED_TEXT].removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in text):
        return "an SVG drawing"
    return None
