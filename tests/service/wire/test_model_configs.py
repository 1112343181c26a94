"""The configs that a front-end collects from a worker's States."""

from __future__ import annotations

import msgspec
import pytest

from model.bundle import Accuracy
from model.types import Task
from service.wire.messages import MalformedMessage, ModelState, Phase, State
from service.wire.worker_view import MAX_CONFIGS, ModelConfigs
from tests.fakes import fake_bundle

CONFIG = fake_bundle(Task.CLASSIFY).config
OTHER = fake_bundle(Task.DETECT).config


def state(*versions: str, **configs: str) -> State:
    models = tuple(ModelState(f"model-{version}", version, True, "cpu", "fp32") for version in versions)
    return State("one", Phase.READY, "ready", 0.0, models, configs)


def test_a_config_is_kept() -> None:
    """A config that was sent once is kept while its model is not served; the worker's order counts."""
    configs = ModelConfigs()
    assert configs.models(Phase.READY) is None
    configs.learn(state("v1", "v2", v1=CONFIG.model_dump_json(), v2=OTHER.model_dump_json()))
    assert set(configs.versions) == {"v1", "v2"}
    configs.learn(state("v2"))
    assert [one.config for one in configs.models(Phase.READY) or ()] == [OTHER]
    configs.learn(state("v2", "v1"))
    assert [one.config for one in configs.models(Phase.READY) or ()] == [OTHER, CONFIG]
    configs.learn(state())
    assert configs.models(Phase.READY) == ()


def test_a_model_without_a_config_is_left_out() -> None:
    """A model whose config was not sent is not listed, and the next Hello asks for it."""
    configs = ModelConfigs()
    configs.learn(state("v1", "v2", v1=CONFIG.model_dump_json()))
    assert [one.config for one in configs.models(Phase.READY) or ()] == [CONFIG]
    assert configs.versions == ("v1",)
    configs.learn(state("v1", "v2", v2=OTHER.model_dump_json()))
    assert [one.config for one in configs.models(Phase.READY) or ()] == [CONFIG, OTHER]


def test_figures_may_change_under_one_version() -> None:
    """A model that was measured is the same version, whose config is not sent again: figures come with the State."""
    configs = ModelConfigs()
    configs.learn(state("v1", v1=CONFIG.model_dump_json()))
    accuracy = Accuracy(metrics={"top1": 0.5}, measured_on="ten pictures")
    measured = state("v1")
    models = tuple(msgspec.structs.replace(one, accuracy=accuracy.model_dump_json()) for one in measured.models)
    configs.learn(msgspec.structs.replace(measured, models=models))
    assert [one.config for one in configs.models(Phase.READY) or ()] == [
        CONFIG.model_copy(update={"accuracy": accuracy})
    ]
    assert CONFIG.model_copy(update={"accuracy": accuracy}).version == CONFIG.version
    configs.learn(state("v1"))
    assert [one.config for one in configs.models(Phase.READY) or ()] == [CONFIG]
    models = tuple(msgspec.structs.replace(one, accuracy="no figures") for one in measured.models)
    with pytest.raises(MalformedMessage):
        configs.learn(msgspec.structs.replace(measured, models=models))


def test_models_are_ready_only_while_the_worker_is() -> None:
    """The models of a lost, starting or draining worker are still known, and none of them is ready."""
    configs = ModelConfigs()
    configs.learn(state("v1", v1=CONFIG.model_dump_json()))
    for phase in (None, Phase.STARTING, Phase.DRAINING):
        (status,) = configs.models(phase) or ()
        assert (status.config, status.ready) == (CONFIG, False)
    (status,) = configs.models(Phase.READY) or ()
    assert (status.ready, status.device) == (True, "cpu")


def test_versions_with_equal_configs_are_distinct() -> None:
    """Each model has its version; a version that is not served any more is still known, an unknown one is not."""
    configs = ModelConfigs()
    configs.learn(state("v1", v1=CONFIG.model_dump_json()))
    (first,) = configs.models(Phase.READY) or ()
    configs.learn(state("v2", v2=CONFIG.model_dump_json(), v1=CONFIG.model_dump_json()))
    (second,) = configs.models(Phase.READY) or ()
    assert (first.version, second.version) == ("v1", "v2")
    assert first.config == second.config
    assert "v1" in configs
    assert "v3" not in configs


def test_the_number_of_configs_is_bounded() -> None:
    """Of the models that are not served any more, only the latest are kept."""
    configs = ModelConfigs()
    for number in range(MAX_CONFIGS + 10):
        configs.learn(state(f"v{number}", **{f"v{number}": CONFIG.model_dump_json()}))
    assert len(configs.versions) == MAX_CONFIGS + 1
    assert f"v{MAX_CONFIGS + 9}" in configs.versions
    assert "v0" not in configs.versions


def test_an_invalid_config_is_a_malformed_message() -> None:
    """A State with an invalid config is refused, and nothing changes."""
    configs = ModelConfigs()
    configs.learn(state("v1", v1=CONFIG.model_dump_json()))
    with pytest.raises(MalformedMessage):
        configs.learn(state("v2", v2='{"name": 3}'))
    assert [one.config for one in configs.models(Phase.READY) or ()] == [CONFIG]
