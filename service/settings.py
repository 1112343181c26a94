"""All settings: flags > environment `CONVMLP_*` > `convmlp.toml` > the defaults here. Units are in the names."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from pydantic.functional_validators import AfterValidator, BeforeValidator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from model.model_name import canonical_name, versioned_name
from service.traffic_split import TrafficSplit, parse_splits

if TYPE_CHECKING:
    from model.decode import DecodeLimits

EMBEDDED_MODELS = ("convmlp_pets_breed", "convmlp_pets_heads", "convmlp_pets_outline")

MAX_DEFAULT_DECODED_BYTES = 400 * 10**6

Port = Annotated[int, Field(ge=0, le=65535)]
"""0 = any free port."""


def _form(pattern: str, expected: str) -> AfterValidator:
    """Refuses other text with what is expected; pydantic's own error shows the pattern alone."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"expected {expected}")
        return text

    return AfterValidator(check)


_PORT = r"[1-5]?\d{1,4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5]"
"""At most 65535: of a larger number libzmq would take the lower bits."""

Address = Annotated[
    str, _form(rf"ipc://.+|tcp://.+:({_PORT}|\*)|dns://.+:({_PORT})", "ipc://PATH, tcp://HOST:PORT or dns://NAME:PORT")
]


PrecisionChoice = Annotated[
    str,
    _form(
        r"([^=\s]+=)?(auto|exact|fp32|fp16|bf16|int8)",
        "auto, exact, fp32, fp16, bf16 or int8, or NAME= before one of them",
    ),
]
"""Of one model, or without `NAME=` of all others."""


ModelWeight = Annotated[str, _form(r"[^=\s]+=(\d+\.?\d*|\.\d+)", "NAME=NUMBER")]


def _network(text: str) -> str:
    ipaddress.ip_network(text)  # ValueError names the text
    return text


Network = Annotated[str, AfterValidator(_network)]


FetchHost = Annotated[
    str,
    _form(
        r"((\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?",
        "HOST, *.HOST for all names below it, or an address, each with or without :PORT",
    ),
]


Origin = Annotated[str, _form(r"\*|https?://[^/\s*]+", "https://HOST, or * for all")]


ProtectedPath = Literal["/metrics", "/", "/docs", "/openapi.json"]


ServedName = Annotated[str, AfterValidator(canonical_name)]
"""`NAME` or `NAME@VERSION`."""


def _split_names(value: Any) -> Any:  # noqa: ANN401  (whatever a source holds)
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


class _Environment(EnvSettingsSource):
    """An empty variable is as if it were not set, as in a list of variables to fill in, unless empty is a value."""

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields
        return {name: value for name, value in super().__call__().items() if value or fields[name].default in ("", ())}


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

    # Listening
    host: str = "127.0.0.1"
    """Address to listen on (0.0.0.0 = all interfaces, :: = all with IPv6 and IPv4)."""
    http_port: Port = 8000
    """HTTP port (0 = any free port)."""
    grpc_port: Port = 8001
    """gRPC port (0 = any free port)."""
    grpc_metrics_port: Port = 8003
    """Metrics port of a gRPC front-end that runs alone (0 = any free port). Under `serve`, /metrics on the HTTP port
    has its metrics."""
    worker_metrics_port: Port = 8002
    """Metrics port of a worker (0 = any free port). Under `serve`, the second worker has the next port, and so on."""
    workers: NonNegativeInt = 0
    """Worker processes (0 = one per GPU; one if there is no GPU or --device names one)."""
    rest_processes: PositiveInt = 1
    """REST front-end processes. They share the port."""
    grpc_processes: PositiveInt = 1
    """gRPC front-end processes. They share the port."""

    # HTTP connections
    http_tls_certificate: Path | None = None
    """PEM file of the certificate chain of REST, leaf first. Turns TLS on; renewed files are loaded without a restart.
    """
    http_tls_key: Path | None = None
    """PEM file of the certificate's private key, without a password."""
    http_tls_client_ca: Path | None = None
    """PEM file of certificate authorities. REST's callers must present a certificate that one of them signed (mTLS)."""
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_split_names)] = ()
    """Addresses or networks of proxies, comma-separated, such as 10.0.0.0/8. A caller behind them is the last address
    in `forwarded_header` that is not theirs: for rates, logs and fairness. Without them that is the peer's address."""
    forwarded_header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for"
    """The header (RFC 7239 defines the second) in which the trusted proxies add their callers' addresses. The other one
    is ignored, because a caller may have sent it."""
    cors_origins: Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_split_names)] = ()
    """Origins, comma-separated, such as https://app.example.org, whose pages may call REST; * is any. By default
    browsers let only the service's own pages call it."""
    deepstack_at_root: bool = False
    """Serve DeepStack's API at /v1/vision, too: for clients that take a host and a port, but no path."""

    # gRPC connections
    grpc_tls_certificate: Path | None = None
    """PEM file of the certificate chain, leaf first. Turns TLS on; renewed files are loaded without a restart."""
    grpc_tls_key: Path | None = None
    """PEM file of the certificate's private key, without a password."""
    grpc_tls_client_ca: Path | None = None
    """PEM file of certificate authorities. Callers must present a certificate that one of them signed (mTLS)."""
    grpc_compression: Literal["none", "deflate", "gzip"] = "none"
    """Compression of replies, for callers that accept it. Requests may always be compressed."""
    grpc_max_connection_age_ms: NonNegativeInt = 0
    """Ask callers to reconnect after this time, so that load balancers can spread them again (0 = never)."""
    grpc_max_connection_age_grace_ms: NonNegativeInt = 0
    """How long running calls may still take after that before they are cut off (0 = no limit)."""

    # Access
    api_keys_file: Path | None = None
    """File of the API keys that callers must send: one per line, optionally with a name before it. Without it, no key
    is needed."""
    protected_paths: Annotated[tuple[ProtectedPath, ...], NoDecode, BeforeValidator(_split_names)] = ()
    """Paths, comma-separated, that need a key as well: of /metrics, /, /docs, /openapi.json. Probes never need one."""
    rate_limit_per_s: NonNegativeFloat = 0.0
    """Images per second of one caller; each front-end process counts for itself (0 = no limit).

    A caller is identified by its API key's name, or without keys by its address. Behind a proxy that is the proxy's
    address, because X-Forwarded-For can be forged, unless `trusted_proxies` names it.
    """
    rate_limit_burst: PositiveInt = 64
    """Images that a caller may send at once after a pause, if there is a rate limit."""

    # Models and device
    models_dir: Path | None = None
    """Folder of model bundles, in addition to the embedded ones."""
    models: Annotated[tuple[ServedName, ...], NoDecode, BeforeValidator(_split_names), Field(min_length=1)] = (
        EMBEDDED_MODELS
    )
    """Names of the models to serve, comma-separated. The first of a task is the task's default. NAME@2 is version 2 of
    NAME, and requests for NAME are answered by the first of its versions here, unless --split has others."""
    split: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)] = ()
    """Which versions answer requests for a model's name, as NAME=VERSION:PERCENT,VERSION:PERCENT such as
    pets=1:90,2:10; the percentages of a name sum to 100. NAME=VERSION gives all requests to one version. For workers;
    with --model-control callers can change it."""
    model_weights: Annotated[tuple[ModelWeight, ...], NoDecode, BeforeValidator(_split_names)] = ()
    """`NAME=NUMBER`, comma-separated: relative shares of the device's time under overload. Other models have 1."""
    device: Annotated[str, _form(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N")] = "auto"
    """auto (CUDA if available, else the CPU), cpu, cuda or cuda:N."""
    precision: Annotated[tuple[PrecisionChoice, ...], NoDecode, BeforeValidator(_split_names), Field(min_length=1)] = (
        "auto",
    )
    """Precision of the networks: auto, exact, fp32, fp16, bf16 or int8; also per model, as `fp32,NAME=bf16`. auto: the
    fastest whose answer on the reference picture agrees with fp32, measured once and kept in --state-dir; exact: fp32
    in the authors' order of operations; fp32: in the fastest order; int8: of models that `convmlp models quantize`
    made. With any but auto all replicas answer alike."""
    state_dir: Path | None = None
    """Folder in which a worker keeps what it measured for its next start: each model's precision and best batch size,
    and how long a start takes. By default ~/.local/state/convmlp, or convmlp in $XDG_STATE_HOME."""
    compute_threads: NonNegativeInt = 0
    """Threads of the network on a CPU (0 = all cores that the process may use)."""
    prepare_threads: NonNegativeInt = 0
    """Threads of a front-end that decode, encode and draw images (0 = all cores that the process may use)."""
    fast_decode: bool = False
    """Decode large JPEGs at 1/2, 1/4 or 1/8 of their size if the model needs no more. Several times faster for phone
    photographs; answers differ slightly from those of the full size."""

    # Loading and unloading models at run time
    model_control: bool = False
    """Let callers load and unload models. Set it for workers and front-ends."""
    model_control_timeout_ms: PositiveInt = 120_000
    """How long loading or unloading a model may take."""
    served_models_file: Path | None = None
    """File in which a worker records its models after callers loaded or unloaded some. A restarted worker reads it."""

    # Between front-ends and workers
    worker_address: Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_split_names)] = ()
    """`ipc://PATH` or `tcp://HOST:PORT`. A worker listens there; a front-end connects to all of them, comma-separated,
    and to every address that NAME has in `dns://NAME:PORT`, as they come and go. `serve` chooses addresses if none are
    given."""
    wire_key_file: Path | None = None
    """File of the CURVE key pair that encrypts and authenticates tcp:// addresses; `convmlp wire-key FILE` makes it.
    All front-ends and workers have the same. Without it only addresses of this host are accepted."""
    insecure_wire: bool = False
    """Accept tcp:// addresses of other hosts without a key file. Only for a network that is private to the service:
    any process that reaches a worker's address can send jobs and read pictures."""
    heartbeat_interval_ms: PositiveInt = 500
    """How often front-ends ask a worker for its state."""
    worker_timeout_ms: PositiveInt = 5_000
    """A worker that has not answered for this long counts as dead."""
    front_end_timeout_ms: PositiveInt = 15_000
    """Under `serve`, a front-end process that has not responded for this long is killed and restarted."""
    batch_timeout_ms: PositiveInt = 120_000
    """A worker whose batch has run for this long exits, and the supervisor restarts it."""
    self_check_interval_ms: PositiveInt = 60_000
    """How often each model is checked on the reference picture."""

    # Limits
    max_image_bytes: PositiveInt = 20 * 2**20
    """Bytes of one encoded image."""
    max_image_mpx: Annotated[PositiveInt, Field(le=500)] = 64
    """Megapixels of one image, read from its header before decoding; at most 500. The memory and CPU time of decoding
    are limited with them: 6 bytes and the work of 8 pixels of a baseline JPEG, for each of these pixels."""
    max_images: PositiveInt = 64
    """Images in one request."""
    max_tiles: PositiveInt = 64
    """Windows into which one image is cut for `tiles`. Each counts as an image for rates and for the images in
    progress; so does the whole image, which a detector gets as well."""
    max_request_bytes: PositiveInt = 64 * 2**20
    """Bytes of one request's body."""
    max_in_flight: PositiveInt = 1024
    """Images in progress in one front-end process."""
    max_stream_in_flight: PositiveInt = 64
    """Images in progress in one gRPC stream, including replies that the caller has not read. Further ones wait."""
    max_in_flight_bytes: PositiveInt = 192 * 2**20
    """Bytes of all request bodies in one front-end process."""
    max_decoded_bytes: NonNegativeInt = 0
    """Bytes of all decoded images, network inputs and label maps in one front-end process. Further images wait; one
    that needs more alone is refused. (0 = a third of the memory that the process may use, at most 400 MB.)"""
    max_queue_images: PositiveInt = 256
    """Images that wait for the device."""
    max_queue_mpx: PositiveInt = 256
    """Megapixels of network input that wait for the device."""
    max_batch_images: PositiveInt = 32
    """Images in one batch."""
    max_batch_mpx: PositiveInt = 8
    """Megapixels of network input in one batch. A larger image runs alone."""

    max_connections: PositiveInt = 4096
    """Connections of one REST process; gRPC: of one gRPC process. Beyond it idle ones are closed. REST answers probes
    on a few more, and refuses other requests on them. The limit of open files may lower it."""

    # Pictures by URL
    fetch_urls: Annotated[tuple[FetchHost, ...], NoDecode, BeforeValidator(_split_names)] = ()
    """Hosts, comma-separated, from which front-ends fetch pictures that callers name by URL: HOST, or *.HOST for all
    names below it, with :PORT where it is not the scheme's own. Without any, URLs are refused."""
    fetch_private_networks: Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_split_names)] = ()
    """Networks, comma-separated, such as 192.168.1.0/24, in which these hosts may be. Other addresses that are not
    public are refused, whatever a host's name resolves to."""
    fetch_timeout_ms: PositiveInt = 10_000
    """How long fetching one picture may take."""
    max_fetches: PositiveInt = 32
    """Pictures that one front-end process fetches at a time. Further ones wait."""

    # Time limits
    request_timeout_ms: PositiveInt = 30_000
    """Default deadline of a request, and the longest that a caller may set."""
    drain_timeout_ms: PositiveInt = 20_000
    """How long a process may take after SIGTERM to finish the requests in progress."""

    # Logs
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum severity of log lines."""
    log_format: Literal["console", "json"] = "console"
    """console: for people; json: one object per line."""
    access_log: bool = True
    """Log one line per request, at level info. Health and metrics probes are not logged."""

    # Traces
    otlp_endpoint: Annotated[str, _form(r"(https?://[^/\s]+.*)?", "http://HOST:PORT or https://HOST:PORT")] = ""
    """URL of an OpenTelemetry collector (OTLP over HTTP), such as http://collector:4318. Empty: no traces."""
    trace_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of requests to trace, 0 to 1. If the caller sends a trace context, its sampled flag decides."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls), TomlConfigSettingsSource(settings_cls)

    @model_validator(mode="after")
    def _protection_has_keys(self) -> Settings:
        if self.protected_paths and self.api_keys_file is None:
            raise ValueError("protected_paths needs api_keys_file: without keys nobody could read those paths")
        return self

    @model_validator(mode="after")
    def _weights_are_of_models(self) -> Settings:
        for name, weight in self.weights.items():
            if weight <= 0:
                raise ValueError(f"model_weights: the weight of {name!r} is {weight:g}; expected a number above 0")
            # Callers who may load models can add any other.
            if name not in self.models and not self.model_control:
                raise ValueError(f"model_weights: {name!r} is not a served model; served: {', '.join(self.models)}")
        return self

    @model_validator(mode="after")
    def _precisions_are_of_models(self) -> Settings:
        names = [choice.rpartition("=")[0] for choice in self.precision]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"precision: {f'{name!r} has' if name else 'there are'} more than one; name one")
            if name and name not in self.models and not self.model_control:
                raise ValueError(f"precision: {name!r} is not a served model; served: {', '.join(self.models)}")
        return self

    @model_validator(mode="after")
    def _splits_are_of_models(self) -> Settings:
        for name, split in self.splits.items():
            for version in split:
                if versioned_name(name, version) not in self.models:
                    raise ValueError(
                        f"split: version {version} of {name!r} is not a served model; add "
                        f"{versioned_name(name, version)} to models (served: {', '.join(self.models)})"
                    )
        return self

    @property
    def splits(self) -> dict[str, TrafficSplit]:
        """`split` by model name. Raises ValueError, which the settings do when they are made."""
        return parse_splits(self.split)

    def precision_of(self, model: str) -> str:
        """The precision that is configured for a model: auto, exact, fp32, fp16, bf16 or int8."""
        choices = {name: choice for name, _, choice in (one.rpartition("=") for one in self.precision)}
        return choices.get(model) or choices.get("", "auto")

    @property
    def weights(self) -> dict[str, float]:
        """`model_weights` by name."""
        pairs = (pair.rsplit("=", 1) for pair in self.model_weights)
        return {name: float(weight) for name, weight in pairs}

    @property
    def state_folder(self) -> Path | None:
        """`state_dir` or its default; None if there is no home folder."""
        if self.state_dir is not None:
            return self.state_dir
        base = Path(os.environ.get("XDG_STATE_HOME", ""))
        if base.is_absolute():  # the XDG Base Directory Specification has others ignored
            return base / "convmlp"
        try:
            return Path.home() / ".local/state/convmlp"
        except RuntimeError:
            return None

    @property
    def decode_limits(self) -> DecodeLimits:
        from model.decode import DecodeLimits  # imports Pillow and NumPy, which not every reader of settings needs

        return DecodeLimits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_mpx * 10**6)

    @property
    def decoded_bytes(self) -> int:
        """`max_decoded_bytes`, or its default on this machine."""
        return self.max_decoded_bytes or min(usable_memory() // 3, MAX_DEFAULT_DECODED_BYTES)

    def with_changes(self, **changes: Any) -> Settings:  # noqa: ANN401  (any field's own type)
        return Settings(**{**self.model_dump(), **changes})

    def as_environment(self) -> dict[str, str]:
        """Environment variables from which another process reads the same settings."""
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
    except (OSError, ValueError):  # no cgroup v2: only the affinity is known
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def usable_memory(limit_file: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes of memory that this process may use: its cgroup's limit where there is one, else the machine's memory."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(limit_file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no cgroup v2, or no limit: "max"
        return physical
    return min(limit, physical)
