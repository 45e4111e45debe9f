"""``diffusemble zoo``: the small experts that ship with the package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from diffusemble.app.terminal import out

zoo_app = typer.Typer(help="The small experts that ship with the package.", invoke_without_command=True)


@zoo_app.callback()
def zoo(context: typer.Context) -> None:
    """List the small experts that ship with the package."""
    if context.invoked_subcommand is None:
        from diffusemble import zoo
        from diffusemble.app.tables import zoo_table

        groups = zoo.groups()
        out().print(zoo_table(groups, zoo.names(), {group for group in groups if zoo.trained_ensemble(group)}))


@zoo_app.command()
def export(
    name: Annotated[str, typer.Argument(help="An expert, such as animals.")],
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
) -> None:
    """Write an expert as a diffusers folder, for any program that opens Stable Diffusion."""
    from diffusemble.config.places import check_folder
    from diffusemble.zoo import folder as unpacked

    source = unpacked(name.removeprefix("zoo:"))
    if folder.exists():
        raise ValueError(f"{folder} exists already, and nothing is overwritten. Give a folder that does not exist yet.")
    check_folder(folder.parent, "FOLDER", "a folder that does not exist yet")
    shutil.copytree(source, folder)
    out().print(f"folder  {folder}", markup=False)
