"""That the measurements which tests keep are those that a worker looks for."""

from __future__ import annotations

import pytest
import torch

from model.bundle import bundle_names
from tests.e2e.convmlp_process import RunningService


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU services measure the models")
def test_a_service_of_the_tests_measures_nothing(service: RunningService) -> None:
    """Its worker finds a precision and a batch size for each model, at its first start too."""
    sources = [line["source"] for line in service.lines if line["event"] in ("precision", "best batch")]
    assert sources == 2 * len(bundle_names(None)) * ["measured before"]
