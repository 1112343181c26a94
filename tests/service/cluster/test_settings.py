"""The settings of a cluster, without Ray."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from service.cluster.settings import ClusterSettings
from service.settings import EMBEDDED_MODELS

TWO = {
    "groups": [
        {"name": "pets", "models": ["pets"], "cpus": 3, "settings": {"max_queue_images": 7}},
        {"name": "cars", "models": ["cars", "pets"], "gpus": 1},
    ],
    "front_end_cpus": 2.5,
    "settings": {"request_timeout_ms": 5000},
}


def test_each_part_gets_its_settings() -> None:
    """Shared settings reach all parts, a group's its own workers; threads follow from the CPUs that Ray reserves."""
    settings = ClusterSettings.model_validate(TWO)
    pets, cars = (settings.worker_settings(group) for group in settings.groups)
    assert (pets.models, pets.max_queue_images, pets.compute_threads) == (("pets",), 7, 3)
    assert (cars.models, cars.max_queue_images, cars.device) == (("cars", "pets"), 256, "cuda")
    front_end = settings.front_end_settings
    assert (front_end.models, front_end.prepare_threads) == (("pets", "cars"), 2)
    assert {one.request_timeout_ms for one in (pets, cars, front_end)} == {5000}
    assert [group.deployment for group in settings.groups] == ["worker-pets", "worker-cars"]


def test_the_default_is_the_embedded_models_on_one_worker() -> None:
    """Without settings a cluster serves what `convmlp serve` serves."""
    settings = ClusterSettings()
    assert settings.models == EMBEDDED_MODELS
    assert (settings.groups[0].min_workers, settings.groups[0].gpus, settings.front_ends) == (1, 0, 1)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"groups": []}, "at least 1 item"),
        ({"groups": [{"name": "a"}, {"name": "a"}]}, "2 groups named 'a'"),
        ({"groups": [{"name": "A b"}]}, "pattern"),
        ({"groups": [{"min_workers": 3, "max_workers": 2}]}, "less than min_workers"),
        ({"groups": [{"gpus": 2}]}, "one GPU at the most"),
        ({"groups": [{"settings": {"device": "gpu"}}]}, "expected auto, cpu, cuda"),
        ({"settings": {"worker_address": "tcp://a:1"}}, "worker_address is not set in a cluster"),
        ({"groups": [{"settings": {"models": ["x"]}}]}, "group 'all': models is not set"),
        ({"settings": {"model_control": True}}, "model_control cannot be used in a cluster"),
        ({"settings": {"no_such_setting": 1}}, "no_such_setting"),
        ({"grpc": True}, "grpc"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_wrong(wrong: dict[str, Any], reason: str) -> None:
    """A wrong setting ends the deployment before Ray starts anything, and the error names it."""
    with pytest.raises(ValidationError, match=reason):
        ClusterSettings.model_validate(wrong)
