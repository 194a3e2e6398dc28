"""Groups whose commands are read only when one of them is asked for: the others need not wait for that."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group


class GuardGroup(TyperGroup):
    @cached_property
    def whole(self) -> TyperGroup:
        from stillhouse.cli.guarding import guard_app

        return get_group(guard_app)

    def list_commands(self, ctx: Any) -> list[str]:
        return self.whole.list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self.whole.get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Also names the nearest one for a name that is none."""
        return self.whole.resolve_command(ctx, args)


guard_later = typer.Typer(
    cls=GuardGroup, rich_markup_mode=None, help="Serve a model behind accounts, limits and prices."
)
