"""Compares NumPy's products of matrices with sums that use no BLAS: `python numpy_products.py SITE_PACKAGES`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])

import numpy as np

assert Path(np.__file__).is_relative_to(sys.argv[1]), np.__file__

Array = Any
"""NumPy's, of one of `KINDS`."""
KINDS: tuple[Any, ...] = (np.float32, np.float64, np.complex64, np.complex128)

random = np.random.default_rng(0)
SIZES = ((1, 1, 1), (3, 4, 5), (17, 28, 9), (64, 1, 64), (5, 0, 3), (120, 28, 130))


def equal(found: object, subscripts: str, *arrays: Array) -> None:
    single = arrays[0].dtype in (np.float32, np.complex64)
    expected = np.einsum(subscripts, *arrays, optimize=False)
    np.testing.assert_allclose(
        np.asarray(found), expected, rtol=1e-3 if single else 1e-9, atol=1e-4 if single else 1e-10
    )


def numbers(*shape: int) -> Array:
    return random.standard_normal(shape) + 1j * random.standard_normal(shape)


def layouts(x: Array) -> tuple[Array, ...]:
    """The same numbers by rows, by columns, and with gaps."""
    return x, np.asfortranarray(x), np.repeat(x, 2, 0)[::2], np.repeat(x, 2, 1)[:, ::2]


for kind in KINDS:
    np.seterr(all="ignore")
    for m, k, n in SIZES:
        a, b, x, y = (numbers(*shape).astype(kind) for shape in ((m, k), (k, n), (k,), (k,)))
        for one in layouts(a):
            for other in layouts(b):
                equal(one @ other, "ik,kj->ij", a, b)
            equal(one @ one.T, "ik,jk->ij", a, a)
            equal(one.T @ one, "ki,kj->ij", a, a)
            equal(one.conj().T @ one, "ki,kj->ij", a.conj(), a)
            for vector in (x, np.repeat(x, 3)[::3], x[::-1]):
                equal(one @ vector, "ik,k->i", a, vector)
                equal(vector @ one.T, "k,ik->i", vector, a)
        equal(x @ y, "k,k->", x, y)
        equal(x[::-1] @ y, "k,k->", x[::-1], y)
        equal(np.vdot(x, y), "k,k->", x.conj(), y)
        equal(np.linalg.norm(x) ** 2, "k,k->", np.abs(x), np.abs(x))
