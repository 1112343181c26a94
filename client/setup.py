"""Adds to the build what pyproject.toml cannot say: the gRPC code is made of the contract, before it is packed."""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import setup

runpy.run_path(str(Path(__file__).resolve().parents[1] / "proto" / "generate.py"))["generate"]("client")
setup()
