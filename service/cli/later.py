"""Commands that are imported when they are used: a container's health check, every few seconds, needs none of them."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

LATER = {
    "classify": "service.cli.predict:classify",
    "detect": "service.cli.predict:detect",
    "segment": "service.cli.predict:segment",
    "bench": "service.cli.bench:bench",
    "models": "service.cli.models:models_app",
    "train": "service.cli.train:train_app",
}
"""Where each is: a function, or an application with the commands below it."""


class Commands(TyperGroup):
    """Those of LATER follow those that it is made with. Click's types are Any here: some versions of typer have their
    own."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401
        return list(dict.fromkeys((*super().list_commands(ctx), *LATER)))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        if cmd_name not in self.commands:
            # For a name that there is not, the framework looks for the nearest of all.
            for name in (cmd_name,) if cmd_name in LATER else LATER:
                self.commands[name] = _imported(name)
        return super().get_command(ctx, cmd_name)


def _imported(name: str) -> Any:  # noqa: ANN401
    found = resolve_name(LATER[name])
    around = typer.Typer(add_completion=False)
    if isinstance(found, typer.Typer):
        around.add_typer(found, name=name)
    else:
        around.command(name)(found)
    return get_group(around).commands[name]
