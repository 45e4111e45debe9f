"""``diffusemble search`` and ``diffusemble export``: block weights found by trying, or read off a trained ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffusemble.app.flags import Config, Settings
from diffusemble.app.terminal import hush_bars, out, progress_bar


def search(settings: Settings = None, config: Config = None) -> None:
    """Search the block weights of a merge; the same command again goes on where it stopped."""
    from diffusemble.merging.search_config import SearchConfig
    from diffusemble.settings import load_config

    run = load_config(SearchConfig, config, settings or ())
    with progress_bar("loading experts") as tell:
        from diffusemble.merging.search import search as climb

        hush_bars()
        found = climb(run, tell)
        recipe, picture = found.save()
    out().print(
        f"score    {found.score:.4f}, {found.trials[0].score:.4f} at the start; {len(found.trials)} trials",
        markup=False,
    )
    out().print(f"recipe   {recipe}\npicture  {picture}\nmerge:   diffusemble merge --config {recipe}", markup=False)


def export(
    ensemble: Annotated[str, typer.Argument(help="Folder of a trained ensemble, or zoo:GROUP.")],
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw meanwhile.")] = None,
    config: Config = None,
    recipe: Annotated[Path, typer.Option("--out", "-o", help="The recipe to write.")] = Path("recipe.yaml"),
    merged: Annotated[
        str | None, typer.Option(help="Where the recipe's model goes: a folder, or a file where the experts are files.")
    ] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Any key of generate, as key=value.")] = None,
) -> None:
    """Write the mean weight of each expert at each point of an ensemble as the recipe of a block-weighted merge."""
    from diffusemble.config.generate import GenerateConfig
    from diffusemble.config.places import check_file
    from diffusemble.settings import load_config

    if not prompts and config is None:
        raise ValueError("An ensemble is recorded while it draws, but there is no prompt. Give several prompts.")
    flags = {"ensemble": ensemble, **({"prompts": prompts} if prompts else {})}
    run = load_config(GenerateConfig, config, sets or (), **flags)
    check_file(recipe, "--out")
    with progress_bar("drawing"):
        from diffusemble.generation import build_ensemble
        from diffusemble.merging.export import export_weights
        from diffusemble.merging.recipe import check_recipe, write_recipe

        hush_bars()
        whole = build_ensemble(run)
        sources = [str(expert.source) for expert in whole.experts]
        check_recipe(sources, merged, "--merged")
        write_recipe(recipe, sources, export_weights(whole, run), merged)
    out().print(f"recipe   {recipe}\nmerge:   diffusemble merge --config {recipe}", markup=False)
