"""Flags, environment and `convmlp.toml` read into Settings; the help of `convmlp serve` and of its single parts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

import typer
from pydantic import ValidationError
from pydantic_settings import CliSettingsSource

from model.errors import problem_text
from service.cli.console import print_error
from service.cli.environment import similar_setting
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
METAVARS_OF = {"--protected-paths": "A,B,…", "--split": "NAME=SPLIT,…", "--model-weights": "NAME=N,…"}
"""What it writes for the values of these flags."""

DEFAULT = re.compile(r" ?\(default: ((?:\(.*\))|[^()]*)\)$")
"""A default as pydantic-settings writes it; that of several values is a tuple."""

SOURCES = """Each flag is also an environment variable (--http-port: CONVMLP_HTTP_PORT) and a key of convmlp.toml
(http_port). Flags override the environment, and the environment overrides the file."""
EXIT_STATUS = """Exit status: 0 stopped on request; 2 wrong flag or setting; 75 a batch hung (a worker); 78 cannot
start with this configuration."""
USAGE = "[--FLAG VALUE …]"


UNKNOWN_FLAGS = "unrecognized arguments: "
"""As argparse begins its error."""


def settings_of_flags(
    flags: Sequence[str],
    command: str,
    description: str = "",
    *,
    listed: Collection[str] = Settings.model_fields,
    usage: str = USAGE,
    exit_status: str = EXIT_STATUS,
) -> Settings:
    """The settings with these flags of `command`, such as `convmlp serve`; `--help` prints the help and exits.

    `listed` are the names of the settings that the help has. The flags of the others are accepted as well, because
    several commands may be started with the same ones.

    Raises:
        typer.Exit: with status 2, after an error message that names the setting.
        SystemExit: with status 2, for a flag that does not exist.
    """
    parser = _Parser(
        prog=command,
        description=description,
        usage=f"%(prog)s {usage}",
        epilog=f"{SOURCES}\n\n{exit_status}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return settings_or_exit(_cli_settings_source=_flags_source(parser, listed)(args=list(flags)))


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
            if problem["type"] == "extra_forbidden":  # only the file can have one: flags are checked before
                print_error(f"there is no setting {name}, which convmlp.toml has{similar_setting(name)}")
                continue
            # A check across several settings names them itself, and its input is all of them.
            message = problem_text(problem)
            print_error(f"setting {name}: {message} (given: {problem['input']!r})" if name else message)
        raise typer.Exit(2) from None


def flags_without_effect(flags: Sequence[str], read: Collection[str]) -> list[str]:
    """Those of the flags whose setting is not one of `read`, the settings that a command reads."""
    without = []
    for flag in (flag.partition("=")[0] for flag in flags if flag.startswith("--")):
        name = flag.removeprefix("--").replace("-", "_")
        if name not in Settings.model_fields:
            name = name.removeprefix("no_")
        if name in Settings.model_fields and name not in read:
            without.append(flag)
    return without


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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """As argparse, with the nearest flag for one that does not exist."""
        if message.startswith(UNKNOWN_FLAGS):
            unknown = message.removeprefix(UNKNOWN_FLAGS).split()[0].partition("=")[0]
            if nearest := get_close_matches(unknown, self._option_string_actions, n=1):
                message += f"; did you mean {nearest[0]}?"
        super().error(message)


def _flags_source(parser: argparse.ArgumentParser, listed: Collection[str]) -> CliSettingsSource[Any]:
    group: argparse._ActionsContainer = parser

    def add_argument(_: object, flag: str, *others: str, **options: Any) -> argparse.Action:  # noqa: ANN401
        nonlocal group
        if flag in GROUPS:
            group = parser.add_argument_group(GROUPS[flag])
        if "metavar" in options:
            options["metavar"] = METAVARS_OF.get(flag, METAVARS.get(options["metavar"], options["metavar"]))
        is_listed = flag.removeprefix("--").replace("-", "_") in listed
        options["help"] = DEFAULT.sub(_plain_default, options["help"]) if is_listed else argparse.SUPPRESS
        return group.add_argument(flag, *others, **options)

    return CliSettingsSource(Settings, root_parser=parser, add_argument_method=add_argument)


def _plain_default(found: re.Match[str]) -> str:
    """A default as a user would write it; nothing for an empty one."""
    value = found[1].strip("()").replace("'", "").rstrip(",")
    return f" (default: {value})" if value not in ("", "None") else ""
