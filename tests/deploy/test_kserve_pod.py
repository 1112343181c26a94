"""The container of deploy/kserve's example, as a process: its probes, its mounted models, its metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator

import grpc
import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.reference import REFERENCE_PICTURE
from service.frontend.api.oip.generated import grpc_predict_v2_pb2 as oip
from service.frontend.api.oip.generated.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from tests.deploy.kserve import FIRST, PROBES, container_of, make_models, predictor, running_pod, runtime
from tests.e2e.convmlp_process import RunningService


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """The container of the example, with its models."""
    folder = tmp_path_factory.mktemp("mnt") / "models"
    make_models(folder)
    before = sorted(folder.rglob("*"))
    with running_pod(folder) as service:
        yield service
    assert sorted(folder.rglob("*")) == before


def test_probes_are_answered(pod: RunningService) -> None:
    """The paths of all three probes are the service's, and succeed once it is ready."""
    for name in PROBES:
        assert httpx2.get(pod.url + container_of("cpu")[name]["httpGet"]["path"], timeout=60).status_code == 200


def test_mounted_models_answer_over_both_transports(pod: RunningService) -> None:
    """Bundles of links are served, their versions too, by the protocol's paths over HTTP and by its gRPC."""
    for path in (f"{FIRST}/versions/1", f"{FIRST}/versions/2"):
        headers = {"Inference-Header-Content-Length": "0"}
        url = f"{pod.url}/v2/models/{path}/infer"
        answer = httpx2.post(url, content=REFERENCE_PICTURE.read_bytes(), headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
    with grpc.insecure_channel(pod.grpc_address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ModelReady(oip.ModelReadyRequest(name=FIRST, version="2"), timeout=60).ready


def test_the_metric_that_scales_is_exposed(pod: RunningService) -> None:
    """The autoscaler's query is of a gauge that the pod's HTTP port has."""
    (metric,) = predictor()["autoScaling"]["metrics"]
    name = re.search(r"convmlp_\w+", metric["external"]["metric"]["query"])
    text = httpx2.get(pod.url + runtime("cpu")["spec"]["annotations"]["prometheus.kserve.io/path"], timeout=60).text
    gauges = {family.name for family in text_string_to_metric_families(text) if family.type == "gauge"}
    assert name
    assert name[0] in gauges
