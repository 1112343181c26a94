"""Build steps that pyproject.toml has no field for: make the gRPC code of the contract before packing, and compile the
C where there is a compiler."""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import Extension, setup

runpy.run_path(str(Path(__file__).resolve().parent / "proto" / "generate.py"))["generate"]("service")
setup(
    ext_modules=[
        Extension(
            "model._resample",
            ["model/resample.c"],
            depends=["model/resample_avx2.h", "model/raster.h", "model/run_lengths.h", "model/bilinear.h"],
            # Contraction would round once where Pillow rounds twice; debugging information would name this folder.
            extra_compile_args=["-O3", "-ffp-contract=off", "-g0"],
            py_limited_api=True,
            optional=True,
        ),
        Extension(
            "model.net.cpu._kernels",
            ["model/net/cpu/kernels.c"],
            depends=["model/net/cpu/labels.h", "model/net/cpu/linear.h"],
            extra_compile_args=["-O3", "-g0"],
            py_limited_api=True,
            optional=True,
        ),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
