"""`convmlp cluster`: the service on several machines, on Ray Serve. docs/scale.md describes it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import print_error, print_output, print_table, printable, text_column
from service.cluster.settings import ClusterSettings

Address = Annotated[str, typer.Option(metavar="HOST:PORT", help="The head of the cluster. auto: that of this machine.")]
Name = Annotated[str, typer.Option(help="The application's name in Ray Serve.")]

DEFAULT_TIMEOUT_S = 900.0

cluster_app = typer.Typer(
    no_args_is_help=True,
    help="Run the service on several machines, with Ray. Needs the extra `cluster`.",
)


@cluster_app.command()
def up(
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Join the cluster with this head. Without it this machine is the head."),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the head.", min=1024, max=65535)] = 6379,
    node_ip: Annotated[str | None, typer.Option(help="This machine's address for the other machines.")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPU cores to use. By default all.", min=0)] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs to use. By default all.", min=0)] = None,
    resources: Annotated[
        str, typer.Option(metavar="JSON", help='Names that groups of models ask for, such as {"a100": 1}.')
    ] = "{}",
    temp_dir: Annotated[
        Path | None, typer.Option(help="Folder of the cluster's logs and sockets; of the head.")
    ] = None,
    redis_address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_REDIS_ADDRESS",
            metavar="HOST:PORT",
            help="Redis that keeps the head's state: a head that is started again goes on with it.",
        ),
    ] = None,
    slow_start: Annotated[
        bool, typer.Option("--slow-start", help="Allow more time for starts, on a machine with few cores.")
    ] = False,
) -> None:
    """Run this machine's part of a cluster, until a signal: the first machine is the head, others join it."""
    from service.cluster.node import Node

    _require_ray()
    try:
        wanted = json.loads(resources)
        if not isinstance(wanted, dict) or not all(isinstance(count, int | float) for count in wanted.values()):
            raise ValueError
    except ValueError:
        print_error(f'--resources is {resources}; expected a JSON object of numbers, such as {{"a100": 1}}')
        raise typer.Exit(2) from None
    raise typer.Exit(Node(address, port, node_ip, cpus, gpus, wanted, temp_dir, redis_address, slow_start).run())


@cluster_app.command()
def deploy(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="A Serve config or a RayService. Without it: the embedded models."),
    ] = None,
    address: Address = "auto",
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds until it must run.", min=1)
    ] = DEFAULT_TIMEOUT_S,
    restart: Annotated[
        bool, typer.Option("--restart", help="Replace all processes, also where no setting changed: for new weights.")
    ] = False,
) -> None:
    """Deploy the service on a cluster, or update it without losing a request; wait until it runs."""
    _require_ray()
    from service.cluster.config_file import Deployment, InvalidConfig, read_config

    try:
        deployment = Deployment(ClusterSettings()) if file is None else read_config(file)
    except InvalidConfig as error:
        print_error(str(error))
        raise typer.Exit(2) from None
    from service.cluster.control import ClusterStatus, connected
    from service.cluster.control import deploy as deploy_on

    shown = ""

    def show(status: ClusterStatus) -> None:
        nonlocal shown
        parts = (f"{part.name} {_replicas(part.replicas)}" for part in status.parts)
        line = f"{status.state.lower()}: {'; '.join(parts)}"
        if line != shown:
            shown = line
            typer.echo(printable(line), err=True)

    with _errors_to_exit(), connected(address):
        status = deploy_on(deployment, timeout_s, show, restart=uuid.uuid4().hex if restart else "")
        print_output(f"{deployment.name} runs at port {deployment.port} of {', '.join(status.nodes)}")


@cluster_app.command(name="status")
def show_status(
    address: Address = "auto",
    name: Name = "convmlp",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the machines of a cluster, and the state of the service there. Exit status 1 unless it runs."""
    _require_ray()
    import msgspec

    from service.cluster.control import RUNNING, cluster_status, connected

    with _errors_to_exit(), connected(address):
        status = cluster_status(name)
    if as_json:
        print_output(msgspec.json.encode(status))
    else:
        print_output(printable(f"{name}: {status.state.lower() or 'not deployed'}; nodes: {', '.join(status.nodes)}"))
        if status.parts:
            columns = [text_column("part"), text_column("state"), text_column("replicas"), text_column("message")]
            rows = [(part.name, part.state.lower(), _replicas(part.replicas), part.message) for part in status.parts]
            print_table(columns, rows)
    raise typer.Exit(0 if status.state == RUNNING else 1)


@cluster_app.command()
def down(address: Address = "auto", name: Name = "convmlp") -> None:
    """Drain and end the service on a cluster. The machines stay until their `cluster up` ends."""
    _require_ray()
    from service.cluster.control import connected, remove

    with _errors_to_exit(), connected(address):
        if not remove(name):
            print_error(f"no application {name!r} is deployed there")
            raise typer.Exit(1)
    print_output(f"{name} is down")


def _replicas(replicas: dict[str, int]) -> str:
    return ", ".join(f"{count} {state.lower()}" for state, count in sorted(replicas.items())) or "none"


def _require_ray() -> None:
    if find_spec("ray") is None or find_spec("ray.serve") is None:
        print_error("this command needs Ray, which is not installed; install this package's extra `cluster`")
        raise typer.Exit(1)


@contextmanager
def _errors_to_exit() -> Iterator[None]:
    from service.cluster.control import ClusterError

    try:
        yield
    except ClusterError as error:
        print_error(str(error))
        raise typer.Exit(1) from None
