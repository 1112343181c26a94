"""`convmlp doctor`: whether this machine can run the service, and how well."""

from __future__ import annotations

import errno
import json
import os
import platform
import resource
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from model.bundle import find_bundle, read_bundle
from model.errors import BundleInvalid
from service.cli.checks import Check, State
from service.cli.console import print_output, print_table, text_column
from service.cli.security_checks import check_certificates, check_key_files
from service.frontend.core.tls import TRANSPORTS
from service.settings import Settings, usable_cores, usable_memory

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "bf16")
"""Of /proc/cpuinfo, those that decide how fast a precision is."""
EXTRAS = {"heif": "pi_heif", "tracing": "opentelemetry.sdk", "onnx": "onnx", "eval": "pycocotools", "video": "av"}
"""Extras of the package, by a module of each."""
FEW_BYTES = 2 * 2**30
FILES_BESIDE_CONNECTIONS = 256


JSON = "--json"
EXIT_STATUS = "Exit status: 0 the service can start; 1 there is a problem; 2 wrong flag or setting."


def run_doctor(settings: Settings, *, as_json: bool = False) -> int:
    """Print all checks, as a table or as JSON. The exit status is 1 if there is a problem: the service would not start,
    or no client would accept its certificate."""
    checks = list(_checks(settings))
    columns = (text_column("check"), text_column("state"), text_column("found"))
    if as_json:
        print_output(json.dumps({"checks": [asdict(check) for check in checks]}, indent=2, ensure_ascii=False))
    else:
        print_table(columns, [(check.name, check.state, check.found) for check in checks], wrap=True)
    return int(any(check.state is State.PROBLEM for check in checks))


def _checks(settings: Settings) -> Iterator[Check]:
    yield _software()
    yield _processor()
    yield _memory()
    yield from _device(settings)
    yield _resize()
    yield from _models(settings)
    yield _state_folder(settings)
    yield _temporary_folder()
    ports = {"http-port": settings.http_port, "grpc-port": settings.grpc_port}
    for name, port in {**ports, "worker-metrics-port": settings.worker_metrics_port}.items():
        yield _port(name, settings.host, port)
    for transport in TRANSPORTS:
        yield from check_certificates(settings, transport)
    yield from check_key_files(settings)
    yield _open_files(settings)
    yield _extras()


def _software() -> Check:
    python = f"Python {platform.python_version()}, {platform.system()} {platform.release()} on {platform.machine()}"
    return Check("software", State.OK, f"convmlp {version('convmlp-serving')}, {python}")


def _processor() -> Check:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    known = " ".join(flag for flag in INSTRUCTIONS if flag in flags) or "none that is known"
    name = fields.get("model name") or platform.processor() or "unknown processor"
    return Check("processor", State.OK, f"{name}; {usable_cores()} usable cores; instructions: {known}")


def _memory() -> Check:
    usable = usable_memory()
    found = f"{usable / 2**30:.1f} GiB usable"
    if usable < FEW_BYTES:
        return Check("memory", State.NOTE, f"{found}; the embedded models take about 1 GiB under load")
    return Check("memory", State.OK, found)


def _device(settings: Settings) -> Iterator[Check]:
    try:
        import torch
    except ImportError:
        yield Check("torch", State.NOTE, "not installed: this machine can run front-ends only; install '.[worker]'")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    yield Check("torch", State.OK, f"{torch.__version__}, {build}")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    driver = _driver()
    if gpus:
        yield Check("GPU", State.OK, f"{', '.join(gpus)}; driver {driver or 'unknown'}")
    elif driver is not None:
        advice = (
            "torch cannot use it; install torch's build for CUDA" if not torch.version.cuda else "torch finds no GPU"
        )
        yield Check("GPU", State.NOTE, f"driver {driver}; {advice}")
    elif settings.device.startswith("cuda"):
        yield Check("GPU", State.PROBLEM, f"none, and --device is {settings.device}; use --device cpu or auto")
    else:
        yield Check("GPU", State.OK, "none: models run on the CPU")


def _driver() -> str | None:
    from service.observability.gpu import load_nvml

    try:
        nvml = load_nvml()
        nvml.nvmlInit()
    except Exception:  # NVML makes its errors at run time; each means that there is no driver
        return None
    try:
        return str(nvml.nvmlSystemGetDriverVersion())
    finally:
        nvml.nvmlShutdown()


def _resize() -> Check:
    if find_spec("model._resample") is None:
        advice = "install a C compiler and Python's headers, then `pip install --force-reinstall --no-deps .`"
        return Check("resize", State.NOTE, f"not compiled: Pillow resizes, with three times the CPU time; {advice}")
    return Check("resize", State.OK, "compiled")


def _models(settings: Settings) -> Iterator[Check]:
    if settings.models_dir is not None and not settings.models_dir.is_dir():
        found = f"--models-dir {settings.models_dir} is not a folder; create it, or leave the flag out"
        yield Check("models", State.PROBLEM, found)
    for name in settings.models:
        try:
            config = read_bundle(find_bundle(name, settings.models_dir)).config
        except BundleInvalid as error:
            yield Check(f"model {name}", State.PROBLEM, str(error))
            continue
        yield Check(f"model {name}", State.OK, f"{config.task}; precision: {_precision(settings, name)}")


def _precision(settings: Settings, name: str) -> str:
    configured = settings.precision_of(name)
    if configured != "auto":
        return f"{configured}, as configured"
    try:
        from service.worker.state_folder import StateFolder
        from service.worker.torch_runner import TorchRunner

        runner = TorchRunner([], settings, StateFolder(settings.state_folder))
    except Exception as error:  # the check of the device has its own line
        return f"unknown: {error}"
    known = runner.known_precision(read_bundle(find_bundle(name, settings.models_dir)))
    if known is None:
        return "the next start measures which is fastest within the model's tolerance"
    return f"{known.precision}, the fastest within the model's tolerance when it was measured (load {known.load:.2f})"


def _state_folder(settings: Settings) -> Check:
    folder = settings.state_folder
    if folder is None:
        return Check("state folder", State.NOTE, "none: each start measures anew; give --state-dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        advice = "each start measures anew; make it writable, or give --state-dir"
        return Check("state folder", State.NOTE, f"{folder}: {error.strerror}; {advice}")
    return Check("state folder", State.OK, str(folder))


def _temporary_folder() -> Check:
    try:
        with tempfile.TemporaryDirectory() as folder:
            return Check("temporary folder", State.OK, str(Path(folder).parent))
    except OSError as error:
        return Check("temporary folder", State.PROBLEM, f"{error.strerror}; set TMPDIR to a folder that is writable")


def _port(name: str, host: str, port: int) -> Check:
    if port == 0:
        return Check(name, State.OK, "0: the system chooses a free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family):
            return Check(name, State.OK, f"{port} on {host} is free")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return Check(
                name, State.NOTE, f"{port} on {host} is in use, perhaps by a running service; or give --{name}"
            )
        return Check(name, State.PROBLEM, f"{port} on {host}: {os.strerror(error.errno or 0)}; give --host or --{name}")


def _open_files(settings: Settings) -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.max_connections + FILES_BESIDE_CONNECTIONS
    if hard != resource.RLIM_INFINITY and hard < needed:
        advice = f"{settings.max_connections} connections need {needed}; raise `ulimit -n`, or lower --max-connections"
        return Check("open files", State.NOTE, f"at most {hard}; {advice}")
    return Check("open files", State.OK, f"{soft}, at most {hard}")


def _extras() -> Check:
    installed = [name for name, module in EXTRAS.items() if _importable(module)]
    missing = [name for name in EXTRAS if name not in installed]
    return Check(
        "extras", State.OK, f"installed: {', '.join(installed) or 'none'}; not: {', '.join(missing) or 'none'}"
    )


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
