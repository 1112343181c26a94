from __future__ import annotations

import dataclasses
from pathlib import Path

import grpc
import pytest

from convmlp.v1 import vision_pb2 as pb
from model.spec import CenterCropSpec, ClassifyPostSpec, DetectPostSpec, KeepRatioSpec
from model.types import Task
from service.frontend.api.vision.convert import TASKS
from service.settings import Settings
from tests.fakes import fake_bundle
from tests.service.frontend.grpc_server import (
    RpcWithWorker,
    open_rpc,
    open_rpc_at,
    reason,
    refusal,
    request_id,
    retry_s,
    rich,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_models_are_listed(rpc: RpcWithWorker) -> None:
    """ListModels has every served model, in the worker's order, with all fields of GET /models."""
    call = rpc.stub.ListModels(pb.ListModelsRequest(), metadata=(("x-request-id", "mine"),))
    models = (await call).models
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine"
    assert [model.name for model in models] == [f"fake_{task}" for task in Task]
    for model, task in zip(models, Task, strict=True):
        config = fake_bundle(task).config
        assert model.task == TASKS[task]
        assert (model.is_default, model.ready, model.device, model.precision) == (True, True, "cpu", "fp32")
        assert tuple(model.labels) == config.labels
        assert (model.family, model.backbone) == (config.architecture.family, "custom")
        assert model.weights_sha256 == config.weights_sha256
        assert model.source.description == config.source.description
        assert model.source.licence == config.source.licence
        assert not model.HasField("accuracy")
        assert list(model.input.mean) == pytest.approx(config.preprocessing.normalisation.mean)
        assert list(model.input.std) == pytest.approx(config.preprocessing.normalisation.std)
        match config.preprocessing:
            case CenterCropSpec(resize_shorter=shorter, crop=size, interpolation=interpolation):
                crop = model.input.center_crop
                assert (crop.resize_shorter, crop.crop, crop.interpolation) == (shorter, size, interpolation)
            case KeepRatioSpec(long_side=long_side, short_side=short_side, pad_multiple=multiple):
                ratio = model.input.keep_ratio
                assert (ratio.long_side, ratio.short_side, ratio.pad_multiple) == (long_side, short_side, multiple)
        assert model.HasField("score_threshold") == isinstance(config.postprocessing, DetectPostSpec)
        assert model.activation == ("softmax" if task is Task.CLASSIFY else "")
        assert (model.form, model.HasField("form_difference")) == ("trained", False)


async def test_a_multi_label_classifier_has_its_activation_and_threshold() -> None:
    """Clients see from a model's entry that any number of its labels may be right, and from which score on."""
    bundle = fake_bundle(Task.CLASSIFY, "several")
    post = ClassifyPostSpec(activation="sigmoid", score_threshold=0.25)
    config = bundle.config.model_copy(update={"postprocessing": post})
    async with open_rpc(more=[dataclasses.replace(bundle, config=config)]) as rpc:
        models = (await rpc.stub.ListModels(pb.ListModelsRequest())).models
        (model,) = (model for model in models if model.name == "several")
        assert (model.activation, model.score_threshold) == ("sigmoid", 0.25)


async def test_models_before_a_worker_has_come() -> None:
    """Until a worker has reported its models, ListModels is UNAVAILABLE with RetryInfo."""
    async with open_rpc_at("ipc:///tmp/convmlp-test-nobody-is-here", Settings(heartbeat_interval_ms=50)) as rpc:
        call = rpc.stub.ListModels(pb.ListModelsRequest(), metadata=(("x-request-id", "mine"),))
        error = await refusal(call)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert request_id(rich(error)) == "mine"
        assert retry_s(rich(error)) is not None


async def test_models_need_a_key(tmp_path: Path) -> None:
    """Where keys are set, ListModels needs one."""
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef\n")
    async with open_rpc(api_keys_file=keys) as rpc:
        error = await refusal(rpc.stub.ListModels(pb.ListModelsRequest()))
        assert reason(rich(error)) == "UNAUTHENTICATED"
        metadata = (("authorization", "Bearer 0123456789abcdef"),)
        assert len((await rpc.stub.ListModels(pb.ListModelsRequest(), metadata=metadata)).models) == 3
