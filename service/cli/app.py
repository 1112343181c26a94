"""`convmlp …`: the command line of the project."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from service.cli.console import print_error, print_output
from service.cli.environment import unknown_variables
from service.cli.flags import flags_without_effect, settings_of_flags
from service.cli.part_command import PartCommand
from service.cli.parts import SETTINGS_OF
from service.settings import Settings

SERVICE, PREDICTION, TOOLS = "Run the service", "Predict", "Tools"
"""Panels of the help."""

EPILOG = (
    "Exit status: 0 success; 1 failed, in part or as a whole; 2 wrong flag or setting; 78 the service cannot start "
    "with this configuration; 130 interrupted."
)


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """A command, or an application with commands below it, imported on first use from `import_path`, MODULE:NAME."""

    import_path: str
    panel: str


LAZY_COMMANDS = {
    "classify": LazyCommand("service.cli.predict:classify", PREDICTION),
    "detect": LazyCommand("service.cli.predict:detect", PREDICTION),
    "segment": LazyCommand("service.cli.predict:segment", PREDICTION),
    "analyze": LazyCommand("service.cli.analyze:analyze", PREDICTION),
    "embed": LazyCommand("service.cli.embed:embed", PREDICTION),
    "batch": LazyCommand("service.cli.batch:batch", PREDICTION),
    "watch": LazyCommand("service.cli.watch:watch", PREDICTION),
    "eval": LazyCommand("service.cli.evaluation:evaluate", TOOLS),
    "compare": LazyCommand("service.cli.compare:compare", TOOLS),
    "bench": LazyCommand("service.cli.bench:bench", TOOLS),
    "models": LazyCommand("service.cli.models:models_app", TOOLS),
    "train": LazyCommand("service.cli.train:train_app", TOOLS),
    "wire-key": LazyCommand("service.cli.wire_key:wire_key", TOOLS),
    "cluster": LazyCommand("service.cli.cluster:cluster_app", SERVICE),
}
"""Commands that a container's health check, which runs every few seconds, must not import."""


class LazyGroup(TyperGroup):
    """The eager commands, then LAZY_COMMANDS. Click's types are Any here: some versions of typer have their own."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401
        return list(dict.fromkeys((*super().list_commands(ctx), *LAZY_COMMANDS)))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        if cmd_name not in self.commands:
            # For an unknown name typer suggests similar ones of all commands.
            for name in (cmd_name,) if cmd_name in LAZY_COMMANDS else LAZY_COMMANDS:
                self.commands[name] = _load_command(name, LAZY_COMMANDS[name])
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        # Of every command: with a mistyped CONVMLP_URL it would ask another service. The help has the right names.
        if (unknown := unknown_variables(os.environ)) and "--help" not in ctx.args:
            for message in unknown:
                print_error(message)
            raise typer.Exit(2)
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            # typer converts values with pydantic, and shows its text for a value that is not one of the choices.
            error.message = error.message.removeprefix("Value error, ")
            raise


def _load_command(name: str, lazy: LazyCommand) -> Any:  # noqa: ANN401
    found = resolve_name(lazy.import_path)
    group = typer.Typer(add_completion=False)
    if isinstance(found, typer.Typer):
        group.add_typer(found, name=name, rich_help_panel=lazy.panel)
    else:
        group.command(name, rich_help_panel=lazy.panel)(found)
    return get_group(group).commands[name]


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Serve ConvMLP models for image classification, detection and segmentation.",
    epilog=EPILOG,
)

# The flags of the service's parts are the settings themselves: `service.cli.flags` reads them and prints the help.
PART = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

# Each command imports its own part: only the worker's may import torch.


@app.command(cls=PartCommand, context_settings=PART, rich_help_panel=SERVICE)
def serve(context: typer.Context) -> None:
    """Run the whole service on this machine: workers, REST and gRPC front-ends."""
    from service.supervision.child import start_process
    from service.supervision.supervisor import run_supervisor

    # A caller of `app` may give another way to start processes.
    sys.exit(run_supervisor(_settings(context), context.obj or start_process))


@app.command(cls=PartCommand, context_settings=PART, rich_help_panel=SERVICE)
def worker(context: typer.Context) -> None:
    """Run one worker. It owns the device and listens for front-ends at --worker-address."""
    from service.worker.compute_libraries import configure_libraries

    configure_libraries()
    from service.worker.main import run_worker

    settings = _settings(context, needs_worker_address=True)
    if len(settings.worker_address) > 1 or settings.worker_address[0].startswith("dns://"):
        print_error("a worker listens at one --worker-address; only front-ends take several, or a name of several")
        raise typer.Exit(2)
    sys.exit(run_worker(settings))


@app.command(cls=PartCommand, context_settings=PART, rich_help_panel=SERVICE)
def rest(context: typer.Context) -> None:
    """Run one REST front-end. It connects to the workers at --worker-address."""
    from service.frontend.http_main import run_rest

    sys.exit(run_rest(_settings(context, needs_worker_address=True)))


@app.command(cls=PartCommand, context_settings=PART, rich_help_panel=SERVICE)
def grpc(context: typer.Context) -> None:
    """Run one gRPC front-end. It connects to the workers at --worker-address."""
    # gRPC's C library has a log of its own, with a line per failed handshake; it reads this variable when imported.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from service.frontend.grpc_main import run_grpc

    sys.exit(run_grpc(_settings(context, needs_worker_address=True)))


@app.command(cls=PartCommand, context_settings=PART, rich_help_panel=SERVICE)
def health(context: typer.Context) -> None:
    """Check whether a part of the service is healthy, or with --live, alive."""
    from service.cli.health import run_health

    sys.exit(run_health(context.args))


@app.command(cls=PartCommand, context_settings=PART, rich_help_panel=SERVICE)
def doctor(context: typer.Context) -> None:
    """Check whether this machine can run the service with these settings: those of `serve`."""
    from service.cli.doctor import EXIT_STATUS, JSON, run_doctor
    from service.cli.flags import USAGE

    as_json = JSON in context.args
    context.args = [word for word in context.args if word != JSON]
    settings = _settings(context, usage=f"[{JSON}] {USAGE}", exit_status=EXIT_STATUS)
    sys.exit(run_doctor(settings, as_json=as_json))


def _print_version(given: bool) -> None:
    if given:
        from importlib.metadata import version

        print_output(f"convmlp {version('convmlp-serving')}")
        raise typer.Exit


@app.callback()
def _common(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None: ...


def main() -> None:
    if os.getpid() == 1:
        # The first process of a container ignores signals that it has no handler for, and imports take seconds.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    app(prog_name="convmlp")


def _settings(context: typer.Context, *, needs_worker_address: bool = False, **help_texts: str) -> Settings:
    read = SETTINGS_OF.get(context.info_name or "", SETTINGS_OF["serve"])
    description = context.command.help or ""
    settings = settings_of_flags(context.args, context.command_path, description, listed=read, **help_texts)
    if unused := flags_without_effect(context.args, read):
        print_error(f"{', '.join(unused)}: no effect; `{context.command_path} --help` lists the flags that it reads")
    if needs_worker_address and not settings.worker_address:
        print_error("--worker-address is required, for example ipc:///run/convmlp/worker")
        raise typer.Exit(2)
    return settings
