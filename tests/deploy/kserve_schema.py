"""The fields of KServe's objects, by the models of its SDK for Python, which are made from the same source as its CRDs.

The parts that are Kubernetes' own (containers, volumes, probes) are left to Kubernetes' schemas.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.clients.installs import PYTHON, python_packages

PLAIN: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "bool": (bool,), "float": (float, int)}
KUBERNETES = re.compile(r"V1[A-Z]|K8sIoApi|ResourceQuantity|V1beta1MetricQuantity|object")
"""Types whose contents are not KServe's."""


@dataclass(frozen=True)
class Model:
    """Of each field by its name in YAML: its type. `required`: names of fields that must be there."""

    types: dict[str, str]
    required: frozenset[str]


def problems(value: object, kind: str, path: str = "") -> Iterator[str]:
    """What the SDK's model of this type does not have, requires, or has of another type."""
    if kind.startswith("list["):
        if not isinstance(value, list):
            yield f"{path}: a list is expected"
            return
        for number, item in enumerate(value):
            yield from problems(item, kind.removeprefix("list[").removesuffix("]"), f"{path}[{number}]")
    elif kind.startswith("dict("):
        if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
            yield f"{path}: a mapping of texts is expected"
    elif kind in PLAIN:
        if type(value) not in PLAIN[kind]:
            yield f"{path}: {kind} is expected"
    elif model := _model(kind):
        if not isinstance(value, dict):
            yield f"{path}: a mapping is expected"
            return
        yield from (f"{path}.{name}: missing" for name in sorted(model.required - value.keys()))
        for name, item in value.items():
            if name in model.types:
                yield from problems(item, model.types[name], f"{path}.{name}")
            else:
                yield f"{path}.{name}: there is no such field"
    elif not KUBERNETES.match(kind):
        yield f"{path}: unknown type {kind}"


@cache
def _model(kind: str) -> Model | None:
    """The SDK's model of this name; None if it has none."""
    file = _files().get(kind.lower())
    if file is None:
        return None
    text = file.read_text(encoding="utf-8")
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict)
    }
    names = tables["attribute_map"]
    return Model(
        {names[attribute]: type_name for attribute, type_name in tables["openapi_types"].items()},
        frozenset(names[one] for one in re.findall(r"client_side_validation and (\w+) is None", text)),
    )


@cache
def _files() -> dict[str, Path]:
    """The SDK's files of models by the model's name in lower case. Skips the test where the registry is unreachable."""
    folder = python_packages(*PYTHON["kserve"]) / "kserve/models"
    return {path.stem.replace("_", ""): path for path in folder.glob("v1*.py")}
