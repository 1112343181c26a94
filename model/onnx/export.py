"""Writing a bundle as an ONNX file, and checking it with ONNX Runtime before it is written."""

from __future__ import annotations

import importlib.metadata
import io
import json
import warnings
from pathlib import Path

import onnx
import torch

from model.bundle import Bundle, BundleConfig
from model.errors import BundleInvalid
from model.files import replace_file
from model.onnx.check import Differences, compare
from model.onnx.graphs import GRAPHS, Graph, example
from model.predictor import load_network
from model.zoo.pipeline import describe

OPSET = 18
"""ONNX 1.13, of December 2022: what other runtimes read."""


def export_onnx(bundle: Bundle, file: Path) -> Differences:
    """Write a bundle as an ONNX file, float32, as a whole or not at all; an existing file is replaced.

    Its graph begins with the resized picture and ends with the answer (`model/onnx/graphs.py`). Its metadata has what
    the bundle's config has.

    Args:
        bundle: as read by `read_bundle`.
        file: its folder must exist.

    Returns:
        How far the answers of ONNX Runtime differ from those of the service.

    Raises:
        BundleInvalid: the weights do not fit the architecture, or the answers differ by more than the tolerances of
            the bundle's reference; nothing is written.
        NotFinite: the network's output has NaN or infinity.
        OSError: the file cannot be written.
    """
    config = bundle.config
    graph = GRAPHS[config.architecture.family](load_network(bundle), config).eval()
    document = onnx.load_from_string(_traced(graph, config))
    document.producer_name = "convmlp"
    document.producer_version = importlib.metadata.version("convmlp-serving")
    document.doc_string = type(graph).__doc__ or ""
    onnx.helper.set_model_props(document, metadata(config))
    content = document.SerializeToString()
    differences = compare(content, bundle, graph.signature)
    if differences.mismatch is not None:
        raise BundleInvalid(
            f"{file} is not written, because ONNX Runtime does not answer as the model: {differences.mismatch}; please "
            f"report it with the output of `convmlp models show {config.name}`"
        )
    replace_file(file, content, mode=0o644)  # another user may read it
    return differences


def metadata(config: BundleConfig) -> dict[str, str]:
    """What belongs to the weights, as the file's `metadata_props`: a text each, of several values as JSON."""
    accuracy = config.accuracy
    return {
        "name": config.name,
        "task": config.task.value,
        "version": config.version,
        "labels": json.dumps(config.labels, ensure_ascii=False),
        "palette": "" if config.palette is None else json.dumps(config.palette),
        "pipeline": describe(config.preprocessing, config.postprocessing),
        "preprocessing": config.preprocessing.model_dump_json(),
        "postprocessing": config.postprocessing.model_dump_json(),
        "architecture": config.architecture.model_dump_json(),
        "source": f"{config.source.description} {config.source.url}".strip(),
        "licence": config.source.licence,
        "attribution": config.source.attribution,
        "accuracy": "" if accuracy is None else accuracy.model_dump_json(),
        "weights_sha256": config.weights_sha256,
    }


def _traced(graph: Graph, config: BundleConfig) -> bytes:
    signature = graph.signature
    content = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # It warns of its deprecation (docs/decisions/0013-onnx.md), of slices that it leaves as they are, and of each
        # branch that the trace fixes. The check runs other sizes than the traced one.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            example(config),
            content,  # type: ignore[arg-type]  # the annotation lacks files
            dynamo=False,
            opset_version=OPSET,
            input_names=list(signature.inputs),
            output_names=list(signature.outputs),
            dynamic_axes=signature.axes,
        )
    return content.getvalue()
