"""Clients that generators make of /openapi.json: each is generated, compiled, and sends pictures."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.clients.conftest import CAT, Expected
from tests.clients.installs import node_modules, only_if_asked_for, python_environment, run, tool
from tests.e2e.convmlp_process import RunningService

pytestmark = only_if_asked_for

PROGRAMS = Path(__file__).parent / "programs"
WITH_FORMS = ("--global-property", "skipFormModel=false")
"""By default the generator leaves out the schema of forms, although the code that it makes imports it."""
GENERATED = """package javax.annotation;
public @interface Generated { String value(); String comments() default ""; String date() default ""; }
"""
"""The annotation that generated Java has on each class. It was a part of the JDK up to version 8."""


@pytest.fixture
def document(tmp_path: Path, service: RunningService) -> Path:
    """The service's own /openapi.json, as a file."""
    file = tmp_path / "openapi.json"
    file.write_bytes(httpx2.get(f"{service.url}/openapi.json", timeout=60).content)
    return file


def generate(document: Path, generator: str, out: Path, *flags: str) -> Path:
    """Run OpenAPI Generator; returns the jar that it is."""
    python = python_environment("openapi-generator")
    (jar,) = python.parents[1].glob("lib/python*/site-packages/openapi_generator_cli/openapi-generator.jar")
    command = [tool("java"), "-jar", str(jar), "generate", "-g", generator, "-i", str(document), "-o", str(out)]
    run([*command, *WITH_FORMS, *flags])
    return jar


def check(printed: str, service: RunningService, expected: Expected) -> None:
    """A program printed REST's labels of each task, the text of an error, and the models."""
    answer: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert answer.pop("error").startswith("the image format is not supported")
    models = httpx2.get(f"{service.url}/models", timeout=60).json()["models"]
    assert answer == {
        "labels": list(expected.labels),
        "detections": list(expected.detections),
        "segments": list(expected.segments),
        "models": [model["name"] for model in models],
    }


def test_the_document_is_valid(document: Path) -> None:
    """It follows the OpenAPI Initiative's own schema of OpenAPI 3.1."""
    python = python_environment("openapi-spec-validator")
    run([str(python), "-m", "openapi_spec_validator", "--schema", "3.1", str(document)])


def test_openapi_python_client(
    document: Path, service: RunningService, expected: Expected, no_picture: Path, tmp_path: Path
) -> None:
    """openapi-python-client accepts the whole document; its client sends bytes, JSON and forms."""
    python = python_environment("openapi-python-client")
    options = tmp_path / "options.json"
    options.write_text('{"post_hooks": []}', encoding="utf-8")
    generator = [str(python), "-c", "from openapi_python_client.cli import app; app()", "generate", "--meta", "none"]
    out = ["--path", str(document), "--output-path", str(tmp_path / "generated"), "--config", str(options)]
    assert "WARNING" not in run([*generator, "--fail-on-warning", *out])
    program = [str(python), str(PROGRAMS / "openapi_python_client.py"), service.url, str(CAT), str(no_picture)]
    check(run(program, environment={"PYTHONPATH": str(tmp_path)}), service, expected)


def test_python(document: Path, service: RunningService, expected: Expected, no_picture: Path, tmp_path: Path) -> None:
    """OpenAPI Generator's `python` sends bytes where the call gives their type."""
    generate(document, "python", tmp_path / "out")
    python = python_environment("openapi-generator")
    program = [str(python), str(PROGRAMS / "openapi_generator.py"), service.url, str(CAT), str(no_picture)]
    check(run(program, environment={"PYTHONPATH": str(tmp_path / "out")}), service, expected)


def test_typescript(
    document: Path, service: RunningService, expected: Expected, no_picture: Path, tmp_path: Path
) -> None:
    """OpenAPI Generator's `typescript-fetch` compiles with all checks, and sends bytes."""
    generate(document, "typescript-fetch", tmp_path / "client")
    (tmp_path / "node_modules").symlink_to(node_modules("typescript", "@types/node") / "node_modules")
    shutil.copy(PROGRAMS / "generated.ts", tmp_path)
    compiler = [
        tool("node"),
        "node_modules/typescript/bin/tsc",
        "--strict",
        "--target",
        "es2022",
        "--module",
        "commonjs",
    ]
    run([*compiler, "--types", "node", "generated.ts"], tmp_path)
    check(run(["node", "generated.js", service.url, str(CAT), str(no_picture)], tmp_path), service, expected)


def test_java(document: Path, service: RunningService, expected: Expected, no_picture: Path, tmp_path: Path) -> None:
    """OpenAPI Generator's `java`, library `native`, compiles if masks and vectors have no type of their own."""
    tool("javac")
    sources, classes = tmp_path / "out", tmp_path / "classes"
    properties = "openApiNullable=false,annotationLibrary=none,documentationProvider=none"
    mappings = "Mask=Object,Vector=Object"
    flags = ("--library", "native", "--additional-properties", properties, "--schema-mappings", mappings)
    jar = generate(document, "java", sources, *flags)
    annotation = sources / "src/main/java/javax/annotation/Generated.java"
    annotation.parent.mkdir(parents=True)
    annotation.write_text(GENERATED, encoding="utf-8")
    # The generator's own jar has the libraries of its clients, but for that of operations which take forms alone: what
    # the program needs is compiled.
    libraries = ("-cp", str(jar), "-sourcepath", str(annotation.parents[2]))
    run(["javac", "-nowarn", *libraries, "-d", str(classes), str(PROGRAMS / "Generated.java")])
    classpath = os.pathsep.join((str(classes), str(jar)))
    check(run(["java", "-cp", classpath, "Generated", service.url, str(CAT), str(no_picture)]), service, expected)


def test_bash(document: Path, service: RunningService, expected: Expected, tmp_path: Path) -> None:
    """OpenAPI Generator's `bash` sends JSON from its standard input, and has the parameters as arguments."""
    tool("curl")
    generate(document, "bash", tmp_path / "out")
    client = [tool("bash"), str(tmp_path / "out/client.sh"), "--silent", "--host", service.url]
    flags = ["--content-type", "application/json", "--accept", "application/json"]
    body = json.dumps({"image": base64.b64encode(CAT.read_bytes()).decode()})
    answer = json.loads(run([*client, *flags, "classify", "top_k=2", "-"], text=body))
    assert [row["label"] for row in answer["results"][0]["labels"]] == list(expected.labels)[:2]
