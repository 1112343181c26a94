"""What a front-end makes of the worker's States."""

from __future__ import annotations

import pytest

from model.types import Task
from service.wire.messages import MalformedMessage, ModelState, Phase, State
from service.wire.worker_view import MAX_CONFIGS, ModelConfigs
from tests.fakes import fake_bundle

CONFIG = fake_bundle(Task.CLASSIFY).config
OTHER = fake_bundle(Task.DETECT).config


def state(*versions: str, **configs: str) -> State:
    models = tuple(ModelState(f"model-{version}", version, True, "cpu", "fp32") for version in versions)
    return State("one", Phase.READY, "ready", 0.0, models, configs)


def test_a_config_is_heard_once() -> None:
    """What was sent once is known from then on, also while its model is not served; the worker's order counts."""
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


def test_a_config_that_was_not_sent_is_left_out_until_it_is() -> None:
    """A model whose config got lost is not listed, and the next heartbeat asks for it."""
    configs = ModelConfigs()
    configs.learn(state("v1", "v2", v1=CONFIG.model_dump_json()))
    assert [one.config for one in configs.models(Phase.READY) or ()] == [CONFIG]
    assert configs.versions == ("v1",)
    configs.learn(state("v1", "v2", v2=OTHER.model_dump_json()))
    assert [one.config for one in configs.models(Phase.READY) or ()] == [CONFIG, OTHER]


def test_models_are_ready_only_while_the_worker_is() -> None:
    """A lost, starting or draining worker's models are still known, and none of them is ready."""
    configs = ModelConfigs()
    configs.learn(state("v1", v1=CONFIG.model_dump_json()))
    for phase in (None, Phase.STARTING, Phase.DRAINING):
        (status,) = configs.models(phase) or ()
        assert (status.config, status.ready) == (CONFIG, False)
    (status,) = configs.models(Phase.READY) or ()
    assert (status.ready, status.device) == (True, "cpu")


def test_versions_with_equal_configs_are_told_apart() -> None:
    """What is offered says its version; one that is served no more is still known, and a stranger's is not."""
    configs = ModelConfigs()
    configs.learn(state("v1", v1=CONFIG.model_dump_json()))
    (first,) = configs.models(Phase.READY) or ()
    configs.learn(state("v2", v2=CONFIG.model_dump_json(), v1=CONFIG.model_dump_json()))
    (second,) = configs.models(Phase.READY) or ()
    assert (first.version, second.version) == ("v1", "v2")
    assert first.config == second.config
    assert "v1" in configs
    assert "v3" not in configs


def test_configs_are_bounded() -> None:
    """Of models that are served no more only so many are kept, the latest."""
    configs = ModelConfigs()
    for number in range(MAX_CONFIGS + 10):
        configs.learn(state(f"v{number}", **{f"v{number}": CONFIG.model_dump_json()}))
    assert len(configs.versions) == MAX_CONFIGS + 1
    assert f"v{MAX_CONFIGS + 9}" in configs.versions
    assert "v0" not in configs.versions


def test_what_is_no_config_is_a_malformed_message() -> None:
    """A worker of another kind is refused as a message, and what was known stays."""
    configs = ModelConfigs()
    configs.learn(state("v1", v1=CONFIG.model_dump_json()))
    with pytest.raises(MalformedMessage):
        configs.learn(state("v2", v2='{"name": 3}'))
    assert [one.config for one in configs.models(Phase.READY) or ()] == [CONFIG]
