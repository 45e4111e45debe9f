"""``diffusemble merge``: several models become one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusemble.app.flags import Config
from diffusemble.app.terminal import hush_bars, out, progress_bar
from diffusemble.registry import MERGES

if TYPE_CHECKING:
    from diffusemble.merging.merge import Merged


def merge(
    experts: Annotated[
        list[str] | None, typer.Argument(help="Folders, hub ids, .safetensors files, zoo:NAME or zoo:GROUP.")
    ] = None,
    config: Config = None,
    method: Annotated[str | None, typer.Option("--method", "-m", help=f"{', '.join(MERGES)}.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that differences are taken from.")] = None,
    output: Annotated[str | None, typer.Option("--out", "-o", help="File or folder that does not exist yet.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the method, or any key of the configuration.")
    ] = None,
) -> None:
    """Merge the weights of several models into one model of the same size."""
    from diffusemble.merging.config import MergeConfig
    from diffusemble.settings import load_config

    flags: dict[str, Any] = {"experts": experts or None, "method": method, "base": base, "out": output}
    given = {name: value for name, value in flags.items() if value is not None}
    run = load_config(MergeConfig, config, _with_options(sets or (), MergeConfig.model_fields), **given)
    with progress_bar("starting") as tell:
        from diffusemble.merging.merge import merge as melt

        hush_bars()
        merged = melt(run, tell)
    out().print(_summary(merged, run.method, run.base), markup=False)


def _with_options(sets: Sequence[str], keys: Collection[str]) -> list[str]:
    """``shares=[1,2]`` is short for ``options.shares=[1,2]``."""
    return [one if one.split("=")[0].split(".")[0].strip() in keys else f"options.{one}" for one in sets]


def _summary(merged: Merged, method: str, base: str | None) -> str:
    parts = " and ".join(part or "file" for part in merged.parts)
    what = f"{method} of {', '.join(merged.experts)}" + (f", from {base}" if base else "")
    rest = "" if merged.parts == ("",) else f"; everything else is from {merged.experts[0]}"
    how = f"{merged.tensors} tensors of the {parts}{rest}" if parts else "all models are the same: a copy of the first"
    # A file has no configuration of its own: generate takes that of a folder.
    beside = " --base FOLDER_OF_ITS_ARCHITECTURE" if merged.parts == ("",) else ""
    draw = f'diffusemble generate "a prompt" --experts {merged.out}{beside}'
    return f"merged    {merged.out}\nby        {what}\nholds     {how}\ndraw:     {draw}"
