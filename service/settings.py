"""All settings: flags > environment `CONVMLP_*` > `convmlp.toml` > the defaults here. Units are in the names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, StringConstraints, model_validator
from pydantic.functional_validators import BeforeValidator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

if TYPE_CHECKING:
    from model.decode import DecodeLimits

EMBEDDED_MODELS = ("convmlp_pets_breed", "convmlp_pets_heads", "convmlp_pets_outline")

Port = Annotated[int, Field(ge=0, le=65535)]
"""0 asks the system for a free one."""


Address = Annotated[str, StringConstraints(pattern=r"^(ipc|tcp)://.+$")]


ModelWeight = Annotated[str, StringConstraints(pattern=r"^[^=\s]+=(\d+\.?\d*|\.\d+)$")]


def _split_names(value: Any) -> Any:  # noqa: ANN401  (whatever a source holds)
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="CONVMLP_",
        toml_file="convmlp.toml",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_implicit_flags=True,
    )

    # Where it listens
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of this machine's."""
    http_port: Port = 8000
    """Of the REST front-end; 0: a free one."""
    grpc_port: Port = 8001
    """Of the gRPC front-end; 0: a free one."""
    grpc_metrics_port: Port = 8003
    """Where a gRPC front-end alone tells its metrics (under `serve` REST's /metrics tells them); 0: a free one."""
    worker_metrics_port: Port = 8002
    """Where a worker tells its metrics; 0: a free one. Of several under `serve` the next ones have the next ports."""
    workers: NonNegativeInt = 0
    """Worker processes of `serve`; 0: one for each GPU, where the device is not a certain one, or else one."""
    rest_processes: PositiveInt = 1
    """REST front-end processes that share the port."""
    grpc_processes: PositiveInt = 1
    """gRPC front-end processes that share the port."""

    # gRPC's connections
    grpc_tls_certificate: Path | None = None
    """PEM file of the certificate chain, leaf first; none: no TLS. Renewed files are taken up by themselves."""
    grpc_tls_key: Path | None = None
    """PEM file of the certificate's key, without a password."""
    grpc_tls_client_ca: Path | None = None
    """PEM file of authorities: callers must show a certificate of one of them (mTLS)."""
    grpc_compression: Literal["none", "deflate", "gzip"] = "none"
    """Of replies, to callers that take it; requests may always be compressed."""
    grpc_max_connection_age_ms: NonNegativeInt = 0
    """After this callers are asked to connect anew, so that load balancers can spread them again; 0: never."""
    grpc_max_connection_age_grace_ms: NonNegativeInt = 0
    """What calls in hand may still take then before they are cut off; 0: as long as they like."""

    # Who may ask
    api_keys_file: Path | None = None
    """File of the API keys that callers must send, one a line, with a name before it if liked; none: open to all."""
    rate_limit_per_s: NonNegativeFloat = 0.0
    """Images a second of one caller, counted by each front-end process for itself; 0: as many as come.

    A caller is its API key's name, or without keys its address: that of a proxy, where there is one, for
    X-Forwarded-For can be invented.
    """
    rate_limit_burst: PositiveInt = 64
    """Images that a caller may send at once after a pause, where there is a rate limit."""

    # What it serves, and on what
    models_dir: Path | None = None
    """Folder of model bundles, beside the embedded ones."""
    models: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names), Field(min_length=1)] = EMBEDDED_MODELS
    """Names with commas between; the first of a task is the task's default."""
    model_weights: Annotated[tuple[ModelWeight, ...], NoDecode, BeforeValidator(_split_names)] = ()
    """`NAME=NUMBER` with commas between: the shares of the device's time that models have while several are asked for
    more than it can do; 1 for all others."""
    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    precision: Literal["auto", "exact", "fp32", "fp16", "bf16"] = "auto"
    """What the networks compute in. auto: for each model the fastest that answers as fp32 does on the reference
    picture, by measurement at its start; exact: fp32 in the authors' own order of operations; fp32: in the fastest."""
    compute_threads: NonNegativeInt = 0
    """Threads of the network on a CPU; 0: as many as the process may use."""
    prepare_threads: NonNegativeInt = 0
    """Threads of a front-end that decode, encode and draw; 0: as many as the process may use."""
    fast_decode: bool = False
    """Decode large JPEGs at a half, a quarter or an eighth of their size where the model needs no more: several times
    faster for a photograph of a phone, and answers a little different from those of the whole picture."""

    # Loading and unloading models at run time
    model_control: bool = False
    """Callers may load and unload models; workers and front-ends must both allow it."""
    model_control_timeout_ms: PositiveInt = 120_000
    """What loading or unloading a model may take."""
    served_models_file: Path | None = None
    """Where a worker writes down what it serves once callers changed that, to serve the same when it is restarted."""

    # How front-ends reach the workers
    worker_address: Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_split_names)] = ()
    """`ipc://PATH` or `tcp://HOST:PORT`: of a worker its own, of a front-end those of all its workers, with commas
    between. `serve` makes some of its own where there is none."""
    heartbeat_interval_ms: PositiveInt = 500
    """How often front-ends ask a worker how it is."""
    worker_timeout_ms: PositiveInt = 5_000
    """A worker that was silent for this long is taken for dead."""
    batch_timeout_ms: PositiveInt = 120_000
    """A batch that ran for this long wedged its worker, which then ends to be restarted."""
    self_check_interval_ms: PositiveInt = 60_000
    """How often each model is asked about the reference picture."""

    # Bounds
    max_image_bytes: PositiveInt = 20 * 2**20
    """Of one encoded image."""
    max_image_mpx: PositiveInt = 50
    """Megapixels of one image, read from its header."""
    max_images: PositiveInt = 64
    """Images in one request."""
    max_request_bytes: PositiveInt = 64 * 2**20
    """Of one request's body."""
    max_in_flight: PositiveInt = 1024
    """Images that one front-end process has in hand."""
    max_stream_in_flight: PositiveInt = 64
    """Images of one gRPC stream in hand, also as replies that its caller has not taken; beyond it is not read."""
    max_in_flight_bytes: PositiveInt = 512 * 2**20
    """Request bodies that one front-end process holds."""
    max_queue_images: PositiveInt = 256
    """Images that wait for the device."""
    max_queue_mpx: PositiveInt = 256
    """Megapixels of network input that wait for the device."""
    max_batch_images: PositiveInt = 32
    """Images in one batch."""
    max_batch_mpx: PositiveInt = 8
    """Megapixels of network input in one batch; a larger image runs alone."""

    # Time
    request_timeout_ms: PositiveInt = 30_000
    """The deadline of a caller that names none, and the latest that one may name."""
    drain_timeout_ms: PositiveInt = 20_000
    """What a process may take after SIGTERM to finish the requests in hand."""

    # Words
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    access_log: bool = True
    """One line, at level info, for each request; none for probes of health and metrics."""

    # Traces
    otlp_endpoint: Annotated[str, StringConstraints(pattern=r"^(https?://[^/\s]+.*)?$")] = ""
    """URL of an OpenTelemetry collector that takes OTLP over HTTP, as in http://collector:4318; empty: no traces."""
    trace_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of requests that are traced; of those whose caller traces already, the caller's word decides."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @model_validator(mode="after")
    def _weights_are_of_models(self) -> Settings:
        for name, weight in self.weights.items():
            if weight <= 0:
                raise ValueError(f"model_weights: the weight of {name!r} is {weight:g}; it must be above 0")
            # Callers who may load models can bring any other.
            if name not in self.models and not self.model_control:
                raise ValueError(
                    f"model_weights: {name!r} is not served; models says what is: {', '.join(self.models)}"
                )
        return self

    @property
    def weights(self) -> dict[str, float]:
        """`model_weights` by name."""
        pairs = (one.rsplit("=", 1) for one in self.model_weights)
        return {name: float(weight) for name, weight in pairs}

    @property
    def decode_limits(self) -> DecodeLimits:
        from model.decode import DecodeLimits  # with Pillow and NumPy, which not all that reads settings needs

        return DecodeLimits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_mpx * 10**6)

    def with_changes(self, **changes: Any) -> Settings:  # noqa: ANN401  (any field's own type)
        return Settings(**{**self.model_dump(), **changes})

    def as_environment(self) -> dict[str, str]:
        """The variables that make another process read these same settings."""
        values = self.model_dump(mode="json", exclude_none=True)
        return {
            f"CONVMLP_{name.upper()}": ",".join(value) if isinstance(value, list) else str(value)
            for name, value in values.items()
        }


def usable_cores() -> int:
    """CPU cores that this process may use: its affinity, and its cgroup's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):  # no cgroup v2: the affinity is all there is to know
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
