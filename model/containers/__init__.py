"""The containers of encoded pictures, read without a decoder: headers, and the parts that decoding needs.

A decoder's work follows what a file declares, which costs its sender a few bytes: pixels, scans, chunks. So the header
is read here, in bounded time, before a decoder sees the file, and the decoder gets only the parts that it needs.

A module a format: `read_header(data)` reads the header, `load(data, header)` decodes. The table in `model/decode.py`
lists all formats. `heif.py` is for HEIC and AVIF: their boxes are in `isobmff.py`, what their coded pictures declare in
`hevc.py` and `av1.py`.
"""
