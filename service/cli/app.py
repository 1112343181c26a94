"""`convmlp …`: the one command line of the project."""

from __future__ import annotations

import os
import signal
import sys

import typer

from service.cli.later import Commands
from service.cli.words import complain, settings_or_exit
from service.settings import Settings

app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

# The flags of the service's parts are the settings themselves: pydantic-settings reads them and prints the help.
PART = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

# Each part imports its own weight: the worker's is torch, and a front-end must not carry that.


@app.command(context_settings=PART)
def serve(context: typer.Context) -> None:
    """Everything on this machine: workers and front-ends, supervised. `--help` lists all settings."""
    from service.supervision.supervisor import run_supervisor

    sys.exit(run_supervisor(_settings(context)))


@app.command(context_settings=PART)
def worker(context: typer.Context) -> None:
    """The worker alone: owns the device and answers front-ends at `--worker-address`."""
    from service.worker.openmp import spin_briefly

    spin_briefly()
    from service.worker.main import run_worker

    settings = _settings(context, needs_worker_address=True)
    if len(settings.worker_address) > 1:
        complain("--worker-address of a worker is its own alone; several are for front-ends")
        raise typer.Exit(2)
    sys.exit(run_worker(settings))


@app.command(context_settings=PART)
def rest(context: typer.Context) -> None:
    """A REST front-end alone: has its work done at `--worker-address`."""
    from service.frontend.http_main import run_rest

    sys.exit(run_rest(_settings(context, needs_worker_address=True)))


@app.command(context_settings=PART)
def grpc(context: typer.Context) -> None:
    """A gRPC front-end alone: has its work done at `--worker-address`."""
    # gRPC's library has a log of its own format, with a line for each handshake that fails; it asks when imported.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from service.frontend.grpc_main import run_grpc

    sys.exit(run_grpc(_settings(context, needs_worker_address=True)))


@app.command(context_settings=PART)
def health(context: typer.Context) -> None:
    """Whether a part works, as `health worker --worker-address …`; alone: the part that this container runs.

    With --live: whether it can work at all, or only a new process would; one that loads or drains can.
    """
    from service.cli.health import run_health

    sys.exit(run_health(context.args))


def main() -> None:
    if os.getpid() == 1:
        # The first process of a container gets no signal that it has no handler for, and imports take seconds.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    app(prog_name="convmlp")


def _settings(context: typer.Context, *, needs_worker_address: bool = False) -> Settings:
    settings = settings_or_exit(_cli_parse_args=context.args, _cli_prog_name=context.command_path)
    if needs_worker_address and not settings.worker_address:
        complain("--worker-address is needed, for example ipc:///run/convmlp/worker")
        raise typer.Exit(2)
    return settings
