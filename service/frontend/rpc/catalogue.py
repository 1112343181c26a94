"""ListModels: what the service says of its models."""

from __future__ import annotations

from convmlp.v1 import vision_pb2 as pb
from model.bundle import Accuracy, BundleConfig
from model.spec import CenterCropSpec, DetectPostSpec, KeepRatioSpec, Preprocessing
from model.types import Task
from service.frontend.engine import Engine
from service.types import ModelStatus

TASKS: dict[Task, pb.Task.ValueType] = {
    Task.CLASSIFY: pb.TASK_CLASSIFY,
    Task.DETECT: pb.TASK_DETECT,
    Task.SEGMENT: pb.TASK_SEGMENT,
}


def list_models(engine: Engine) -> pb.ListModelsResponse:
    """All served models, in the worker's order.

    Raises:
        Unavailable: it is not known yet what the worker serves.
    """
    return pb.ListModelsResponse(models=[_model(engine, status) for status in engine.models()])


def _model(engine: Engine, status: ModelStatus) -> pb.Model:
    config: BundleConfig = status.config
    post = config.postprocessing
    return pb.Model(
        name=config.name,
        task=TASKS[config.task],
        ready=status.ready,
        labels=config.labels,
        weights_sha256=config.weights_sha256,
        is_default=engine.resolve(config.task, None).config.name == config.name,
        device=status.device,
        precision=status.precision,
        family=config.architecture.family,
        backbone=config.architecture.backbone.size,
        input=_input(config.preprocessing),
        score_threshold=post.score_threshold if isinstance(post, DetectPostSpec) else None,
        source=pb.Source(**config.source.model_dump()),
        accuracy=accuracy_of(config.accuracy),
    )


def _input(spec: Preprocessing) -> pb.Input:
    normalisation = spec.normalisation
    match spec:
        case CenterCropSpec():
            crop = pb.CenterCrop(resize_shorter=spec.resize_shorter, crop=spec.crop)
            return pb.Input(center_crop=crop, mean=normalisation.mean, std=normalisation.std)
        case KeepRatioSpec():
            ratio = pb.KeepRatio(long_side=spec.long_side, short_side=spec.short_side, pad_multiple=spec.pad_multiple)
            return pb.Input(keep_ratio=ratio, mean=normalisation.mean, std=normalisation.std)


def accuracy_of(accuracy: Accuracy | None) -> pb.Accuracy | None:
    return None if accuracy is None else pb.Accuracy(metrics=accuracy.metrics, measured_on=accuracy.measured_on)
