"""Flags, environment and `convmlp.toml` read into Settings; the help of `convmlp serve` and of its single parts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

import typer
from pydantic import ValidationError
from pydantic_settings import CliSettingsSource

from model.errors import problem_text
from service.cli.console import print_error
from service.settings import Settings

GROUPS = {
    "--host": "Listening",
    "--http-tls-certificate": "HTTP connections",
    "--grpc-tls-certificate": "gRPC connections",
    "--api-keys-file": "Access",
    "--models-dir": "Models and device",
    "--model-control": "Loading and unloading models at run time",
    "--worker-address": "Between front-ends and workers",
    "--max-image-bytes": "Limits",
    "--fetch-urls": "Pictures by URL",
    "--request-timeout-ms": "Time limits",
    "--log-level": "Logs",
    "--otlp-endpoint": "Traces",
}
"""The first flag of each group of the help, in the order of Settings; a group ends where the next one begins."""

METAVARS = {"int": "N", "float": "X", "str": "TEXT", "Path": "PATH", "tuple[str,...]": "A,B,…"}
"""What the help writes for the type of a value."""
METAVARS_OF = {"--split": "NAME=SPLIT,…", "--model-weights": "NAME=N,…"}
"""What it writes for the values of these flags."""

DEFAULT = re.compile(r" ?\(default: ((?:\(.*\))|[^()]*)\)$")
"""A default as pydantic-settings writes it; that of several values is a tuple."""

EPILOG = """Each flag is also an environment variable (--http-port: CONVMLP_HTTP_PORT) and a key of convmlp.toml
(http_port). Flags override the environment, and the environment overrides the file.

Exit status: 0 stopped on request; 2 wrong flag or setting; 75 a batch hung (a worker); 78 cannot
start with this configuration."""


def settings_of_flags(flags: Sequence[str], command: str, description: str = "") -> Settings:
    """The settings with these flags of `command`, such as `convmlp serve`; `--help` prints the help and exits.

    Raises:
        typer.Exit: with status 2, after an error message that names the setting.
        SystemExit: with status 2, for a flag that does not exist.
    """
    return settings_or_exit(_cli_settings_source=_flags_source(command, description)(args=list(flags)))


def settings_or_exit(**values: Any) -> Settings:  # noqa: ANN401  (any setting's own type)
    """The settings with `values` over environment and file; a value of None is as if it were not given.

    Raises:
        typer.Exit: with status 2, after an error message that names the setting.
    """
    try:
        return Settings(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(map(str, problem["loc"]))
            # A check across several settings names them itself, and its input is all of them.
            message = problem_text(problem)
            print_error(f"setting {name}: {message} (given: {problem['input']!r})" if name else message)
        raise typer.Exit(2) from None


def is_given(context: typer.Context, name: str) -> bool:
    """Whether a command's line has the flag of its argument `name`; a variable of the environment does not count."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_flags_of_service(context: typer.Context, local: bool, *names: str) -> None:
    """Raises typer.BadParameter if --local is given with the flag of `url`, `api_key` or one of `names`."""
    for name in ("url", "api_key", *names):
        if local and is_given(context, name):
            raise typer.BadParameter(
                f"--{name.replace('_', '-')} needs a service; it does not work with --local, which asks none"
            )


def _flags_source(command: str, description: str) -> CliSettingsSource[Any]:
    parser = argparse.ArgumentParser(
        prog=command,
        description=description,
        usage="%(prog)s [--FLAG VALUE …]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group: argparse._ActionsContainer = parser

    def add_argument(_: object, flag: str, *others: str, **options: Any) -> argparse.Action:  # noqa: ANN401
        nonlocal group
        if flag in GROUPS:
            group = parser.add_argument_group(GROUPS[flag])
        if "metavar" in options:
            options["metavar"] = METAVARS_OF.get(flag, METAVARS.get(options["metavar"], options["metavar"]))
        options["help"] = DEFAULT.sub(_plain_default, options["help"])
        return group.add_argument(flag, *others, **options)

    return CliSettingsSource(Settings, root_parser=parser, add_argument_method=add_argument)


def _plain_default(found: re.Match[str]) -> str:
    """A default as a user would write it; nothing for an empty one."""
    value = found[1].strip("()").replace("'", "").rstrip(",")
    return f" (default: {value})" if value not in ("", "None") else ""
