"""The registry of model families and backbones.

A family is a kind of network with its procedure at test time, such as RetinaNet. A backbone is the feature extractor
that families share, such as ConvMLP. A bundle's config names both. Torch is imported only when a network is needed: an
entry names the object that builds and runs it (`model/net/network.py`).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from model.spec import CenterCropSpec, FixedSizeSpec, Postprocessing, Preprocessing, Spec
from model.types import Task

AnySpec = TypeVar("AnySpec", bound=Spec)


class BackboneSpec(Spec, ABC):
    """Base of backbone specs: the sizes that define a backbone with feature levels at strides 4, 8, 16 and 32.

    A subclass has a field `family`, its name in `BACKBONES`. ConvMLP's has none: it was the only backbone at first, and
    a config without `family` is one of ConvMLP.
    """

    @property
    @abstractmethod
    def level_channels(self) -> tuple[int, int, int, int]:
        """Channels of the levels, finest first."""

    @property
    def embedding_dimension(self) -> int:
        """Length of the pooled features that a classifier's last layer takes."""
        return self.level_channels[-1]

    @property
    def has_levels(self) -> bool:
        """Whether it has feature levels. Without them it can be a classifier only."""
        return True

    @property
    def input_side(self) -> int | None:
        """The side of its square inputs, px; None: it takes inputs of several sizes."""
        return None

    @property
    def input_multiple(self) -> int:
        """Both sides of an input are multiples of it, px."""
        return 1

    @property
    def classifier_preprocessing(self) -> CenterCropSpec:
        """The authors' preprocessing at test time, of a classifier on ImageNet.

        With a fixed input size the default is a centre crop of 224 / 256 of the resized picture.
        """
        side = self.input_side
        if side is None:
            return CenterCropSpec()
        return CenterCropSpec(resize_shorter=int(256 / 224 * side), crop=side)

    @property
    def published_form(self) -> BackboneSpec:
        """The form of the published checkpoints, of a backbone that has several equivalent ones."""
        return self

    @property
    def size(self) -> str:
        """The name of the published size, such as `s`; `custom` for any other."""
        sizes = backbone_of(self).sizes
        return next((name for name, spec in sizes.items() if spec == self.published_form), "custom")


class _Registered(Generic[AnySpec]):
    """Pydantic annotation: validates by the spec class that is registered for the value's `family`.

    The registry is read at validation, so families may be registered at any time before. A nested error is reported
    as one error of the field.
    """

    def __init__(self, specs: Callable[[], Mapping[str, type[AnySpec]]], default: str | None = None) -> None:
        self._specs, self._default = specs, default

    def read(self, value: object, info: ValidationInfo) -> AnySpec:
        """Validate a spec, or an object by its `family`. Raises PydanticCustomError."""
        specs = self._specs()
        for spec in specs.values():
            if isinstance(value, spec):
                return value
        family = value.get("family", self._default) if isinstance(value, dict) else None
        if not isinstance(family, str) or family not in specs:
            raise PydanticCustomError(
                "unknown_family", "expected an object whose family is one of {known}", {"known": ", ".join(specs)}
            )
        try:
            if info.mode == "json":  # strict JSON mode accepts arrays for tuples; strict Python mode does not
                return specs[family].model_validate_json(json.dumps(value))
            return specs[family].model_validate(value)
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
            raise PydanticCustomError("spec", "{problems}", {"problems": "; ".join(problems)}) from error

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        specs = self._specs()
        if all("family" in spec.model_fields for spec in specs.values()):
            choices = {name: spec.__pydantic_core_schema__ for name, spec in specs.items()}
            return handler(core_schema.tagged_union_schema(choices, discriminator="family"))
        return handler(core_schema.union_schema([spec.__pydantic_core_schema__ for spec in specs.values()]))


if TYPE_CHECKING:
    Backbone = BackboneSpec
else:
    # Any: FastAPI would list the base class in OpenAPI.
    Backbone = Annotated[
        Any, _Registered(lambda: {name: backbone.spec for name, backbone in BACKBONES.items()}, "convmlp")
    ]


class ArchitectureSpec(Spec):
    """Base of family specs: the sizes that define a network. A subclass sets `family` and adds fields."""

    family: str
    backbone: Backbone

    @property
    def title(self) -> str:
        """Family, backbone and size, such as `classifier convmlp s`."""
        return f"{self.family} {backbone_of(self.backbone).name} {self.backbone.size}"


if TYPE_CHECKING:
    Architecture = ArchitectureSpec
else:
    Architecture = Annotated[Any, _Registered(lambda: {name: family.spec for name, family in FAMILIES.items()})]


@dataclass(frozen=True, slots=True)
class BackboneFamily:
    """A registered backbone.

    Args:
        name: `family` in a config.
        spec: class of its specs.
        sizes: the published sizes, by name.
        network: where its `BackboneNetwork` is, as `module:name`; the module may import torch.
    """

    name: str
    spec: type[BackboneSpec]
    sizes: Mapping[str, BackboneSpec]
    network: str


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """A registered model family.

    Args:
        name: `family` in a config.
        task: it determines postprocessing, reference check and encoding of the answers.
        spec: class of its specs.
        preprocessing: default for imported checkpoints: the authors' at test time.
        postprocessing: likewise.
        network: where its `FamilyNetwork` is, as `module:name`; the module may import torch.
        masks: whether its detections have masks.
    """

    name: str
    task: Task
    spec: type[ArchitectureSpec]
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    network: str
    masks: bool = False


BACKBONES: dict[str, BackboneFamily] = {}
"""By name. `model/families/__init__.py` fills both registries."""
FAMILIES: dict[str, ModelFamily] = {}
"""By name."""


def preprocessing_of(architecture: ArchitectureSpec) -> Preprocessing:
    """The authors' preprocessing at test time: a classifier's is its backbone's, any other's its family's."""
    family = family_of(architecture)
    return architecture.backbone.classifier_preprocessing if family.task is Task.CLASSIFY else family.preprocessing


def input_problem(backbone: BackboneSpec, preprocessing: Preprocessing) -> str | None:
    """Why a backbone cannot take the inputs of a preprocessing; None: it can."""
    side, multiple = backbone.input_side, backbone.input_multiple
    name = f"{backbone_of(backbone).name} of size {backbone.size}"
    if isinstance(preprocessing, CenterCropSpec):
        crop = preprocessing.crop
        if side is not None and crop != side:
            return f"{name} takes inputs of {side} x {side} px only, not of {crop} x {crop} px"
        if crop % multiple:
            return f"{name} takes inputs whose sides are multiples of {multiple} px, not of {crop} x {crop} px"
    elif side is not None:
        return f"{name} takes inputs of {side} x {side} px only: preprocessing must be center_crop of {side} px"
    elif isinstance(preprocessing, FixedSizeSpec):
        width, height = preprocessing.input_size
        if width % multiple or height % multiple:
            return f"{name} takes inputs whose sides are multiples of {multiple} px, not of {width} x {height} px"
    elif preprocessing.pad_multiple % multiple:
        return f"{name} takes inputs whose sides are multiples of {multiple} px: pad_multiple must be a multiple of it"
    return None


def backbone_of(spec: BackboneSpec) -> BackboneFamily:
    """The registered backbone of a spec."""
    return next(backbone for backbone in BACKBONES.values() if backbone.spec is type(spec))


def family_of(architecture: ArchitectureSpec) -> ModelFamily:
    """The registered family of a spec."""
    return FAMILIES[architecture.family]
