"""Builds the folders of deploy/k8s and deploy/kserve as `kubectl kustomize` does, for machines without it.

It supports the fields that those folders use and refuses all others. Where kubectl is installed, a test compares both.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
"""One Kubernetes object as YAML has it."""

LOADER: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, where PyYAML was built with it: ten times as fast."""
KNOWN = {
    *("apiVersion", "kind", "namespace", "nameSuffix", "resources", "components"),
    *("images", "replicas", "configMapGenerator", "patches"),
}


def build(folder: Path) -> list[Object]:
    """Every object of the kustomization in a folder, ConfigMaps under their final names."""
    return _with_hashes(_accumulate(folder, []))


def read_objects(text: str) -> list[Object]:
    return [document for document in yaml.load_all(text, LOADER) if document is not None]


def _accumulate(folder: Path, objects: list[Object]) -> list[Object]:
    """`objects`, which a component changes, and those of the folder."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    _check(folder, kustomization, KNOWN)
    objects = list(objects)
    for name in kustomization.get("resources", ()):
        path = folder / name
        objects += _accumulate(path, []) if path.is_dir() else read_objects(path.read_text(encoding="utf-8"))
    for name in kustomization.get("components", ()):
        objects = _accumulate(folder / name, objects)
    for generator in kustomization.get("configMapGenerator", ()):
        _generate(folder, generator, objects)
    for patch in kustomization.get("patches", ()):
        _patch(folder, patch, objects)
    for one in objects:
        one["metadata"]["name"] += kustomization.get("nameSuffix", "")
    if namespace := kustomization.get("namespace"):
        for one in objects:
            one["metadata"]["name" if one["kind"] == "Namespace" else "namespace"] = namespace
    for count in kustomization.get("replicas", ()):
        _check(folder, count, {"name", "count"})
        for one in objects:
            if one["kind"] in ("Deployment", "StatefulSet") and one["metadata"]["name"] == count["name"]:
                one["spec"]["replicas"] = count["count"]
    for image in kustomization.get("images", ()):
        _check(folder, image, {"name", "newName", "newTag"})
        for one in objects:
            for container in _containers(one):
                name, _, tag = container["image"].partition(":")
                if name == image["name"]:
                    tag = image.get("newTag", tag)
                    container["image"] = image.get("newName", name) + (f":{tag}" if tag else "")
    return objects


def _generate(folder: Path, generator: Object, objects: list[Object]) -> None:
    _check(folder, generator, {"name", "behavior", "envs", "literals"})
    lines = list(generator.get("literals", ()))
    for name in generator.get("envs", ()):
        text = (folder / name).read_text(encoding="utf-8")
        lines += [line for line in text.splitlines() if line and not line.startswith("#")]
    data = dict(line.split("=", 1) for line in lines)
    same = [one for one in objects if one["kind"] == "ConfigMap" and one["metadata"]["name"] == generator["name"]]
    match generator.get("behavior", "create"), same:
        case "create", []:
            metadata = {"name": generator["name"]}
            objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
        case "merge", [known]:
            known["data"].update(data)
        case behavior, _:
            raise ValueError(f"{folder}: cannot {behavior} {generator['name']}; there are {len(same)}")


def _patch(folder: Path, patch: Object, objects: list[Object]) -> None:
    _check(folder, patch, {"target", "patch"})
    target = patch["target"]
    _check(folder, target, {"kind", "name"})
    met = [
        one
        for one in objects
        if re.fullmatch(target["kind"], one["kind"]) and re.fullmatch(target["name"], one["metadata"]["name"])
    ]
    if not met:
        raise ValueError(f"{folder}: a patch meets no {target['kind']} {target['name']}")
    for one in met:
        for operation in yaml.safe_load(patch["patch"]):
            _apply(one, operation)


def _apply(document: Object, operation: Object) -> None:
    """One operation of RFC 6902, of those that are used."""
    *way, last = operation["path"].removeprefix("/").split("/")
    place: Any = document
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    match operation["op"], place:
        case "add", list() if last == "-":
            place.append(copy.deepcopy(operation["value"]))
        case "add", dict():
            place[last] = copy.deepcopy(operation["value"])
        case "replace", dict() if last in place:
            place[last] = copy.deepcopy(operation["value"])
        case "remove", dict() if last in place:
            del place[last]
        case op, _:
            raise ValueError(f"cannot {op} {operation['path']} of {document['kind']} {document['metadata']['name']}")


def _containers(one: Object) -> list[Object]:
    """Of the pods that an object makes."""
    spec = one.get("spec", {})
    containers: list[Object] = spec.get("template", {}).get("spec", spec).get("containers", [])
    return containers


def _with_hashes(objects: list[Object]) -> list[Object]:
    """ConfigMaps get the hash of their contents into their names, and all that refers to them as well."""
    names = {}
    for one in objects:
        if one["kind"] == "ConfigMap":
            name = one["metadata"]["name"]
            names[name] = one["metadata"]["name"] = f"{name}-{_hash(one['data'])}"
    for one in objects:
        for container in _containers(one):
            for source in container.get("envFrom", ()):
                source["configMapRef"]["name"] = names[source["configMapRef"]["name"]]
    return objects


def _hash(data: dict[str, str]) -> str:
    # Kustomize means to hash the name as well, and looks for it in the wrong place.
    text = json.dumps({"data": data, "kind": "ConfigMap", "name": ""}, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    # Without characters that could make words.
    return digest.translate(str.maketrans("013ae", "ghkmt"))


def _check(folder: Path, mapping: Object, known: set[str]) -> None:
    if unknown := mapping.keys() - known:
        raise ValueError(f"{folder}: this builder does not know {', '.join(sorted(unknown))}")
