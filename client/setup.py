"""Generates the gRPC code from the .proto file before the package is built."""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import setup

runpy.run_path(str(Path(__file__).resolve().parents[1] / "proto" / "generate.py"))["generate"]("client")
setup()
