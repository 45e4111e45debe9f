"""``diffusemble`` on the command line: parse, call, print. Heavy imports wait until a command needs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusemble.app import block_weights, study
from diffusemble.app.control import control
from diffusemble.app.distill import distill
from diffusemble.app.flags import (
    Aggregator,
    Base,
    Config,
    Ensemble,
    Experts,
    Level,
    Lora,
    MemoryBudget,
    RefineFrom,
    RefinerExperts,
    Set,
    Settings,
    refiner_of,
    seeds_of,
    size_of,
)
from diffusemble.app.inspect import inspect
from diffusemble.app.merge import merge
from diffusemble.app.report import report
from diffusemble.app.terminal import Commands, hush_bars, out, progress_bar, training_line
from diffusemble.app.zoo import zoo_app

if TYPE_CHECKING:
    from diffusemble.generation import Saved

app = typer.Typer(
    cls=Commands,
    help="Many diffusion models, one picture.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(zoo_app, name="zoo")

Drawn = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML file, or a picture that was saved before.")]


def _version(wanted: bool) -> None:
    if wanted:
        from diffusemble import __version__

        out().print(__version__)
        raise typer.Exit


@app.callback()
def diffusemble(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and what libraries say.")] = False,
) -> None:
    """Many diffusion models, one picture."""


@app.command()
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="What to draw.")] = None,
    config: Drawn = None,
    experts: Experts = None,
    base: Base = None,
    ensemble: Ensemble = None,
    aggregator: Aggregator = None,
    level: Level = None,
    negative: Annotated[str | None, typer.Option(help="What not to draw.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="One picture of every prompt for each seed.")] = None,
    images: Annotated[int | None, typer.Option("--images", "-n", min=1, help="Seeds, counting up from --seed.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps (50).")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale (7.5); 1 switches it off.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim (default), pndm, dpm++, euler or lcm.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels, such as 512x768.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also a sheet: each expert, mean, ensemble.")] = False,
    attention: Annotated[bool, typer.Option("--attention", help="Also who drew what, where and when.")] = False,
    lora: Lora = None,
    refiner_experts: RefinerExperts = None,
    refine_from: RefineFrom = None,
    memory_budget: MemoryBudget = None,
    output: Annotated[str | None, typer.Option("--out", "-o", help="Folder (outputs), or a name.png.")] = None,
    sets: Set = None,
) -> None:
    """Draw pictures. Without experts, the zoo's trained ensemble draws.

    Every picture carries its configuration: `diffusemble generate --config picture.png` draws it again.
    """
    from diffusemble.config.generate import GenerateConfig
    from diffusemble.pictures.files import check_out
    from diffusemble.settings import load_config

    if not prompts and config is None and not any(one.startswith("prompts") for one in sets or ()):
        raise ValueError('There is nothing to draw. Give a prompt: diffusemble generate "a tiger, noto style".')
    flags = {
        **_given(prompts=prompts, experts=experts, ensemble=ensemble, aggregator=_named(aggregator), negative=negative),
        **_given(
            base=base, level=level, seeds=seeds_of(seed, images), steps=steps, guidance=guidance, scheduler=scheduler
        ),
        **_given(compare=compare or None, attention=attention or None, memory_budget=memory_budget, **size_of(size)),
        **_given(loras=lora, refiner=refiner_of(refiner_experts, refine_from, base)),
    }
    if flags or sets:
        flags["made_with"] = None  # another picture; there is nothing to compare it with
    run = load_config(GenerateConfig, config, sets or (), **flags, **_given(out=output))
    check_out(run.out)
    with progress_bar("starting") as tell:
        from diffusemble.generation import generate as draw

        hush_bars()
        pictures = draw(run, tell)
    _show(pictures.save())
    if pictures.memory is not None:
        out().print(f"memory    {pictures.memory}", markup=False)


@app.command()
def describe(
    sources: Annotated[list[str] | None, typer.Argument(help="Experts, or the folder of an ensemble.")] = None,
    base: Base = None,
    ensemble: Ensemble = None,
    aggregator: Aggregator = None,
    level: Level = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels to reckon the cost for.")] = None,
    sets: Set = None,
) -> None:
    """Print an ensemble: experts, sizes, points, parameters, and what a step costs."""
    from diffusemble.config.ensemble import EnsembleConfig
    from diffusemble.settings import load_config

    if sources and len(sources) == 1 and (Path(sources[0]) / "ensemble.json").is_file():
        ensemble, sources = sources[0], None
    flags = _given(experts=sources, base=base, ensemble=ensemble, aggregator=_named(aggregator), level=level)
    run = load_config(EnsembleConfig, None, sets or (), **{"device": "cpu", **flags})
    with progress_bar("loading experts"):
        from diffusemble.description import describe as count
        from diffusemble.description import latent_size
        from diffusemble.generation import build_ensemble

        hush_bars()
        whole = build_ensemble(run)
        pixels = size_of(size)
        found = count(whole, latent_size(whole, **pixels) if pixels else None)
    from diffusemble.app.tables import description_table

    out().print(description_table(found))


@app.command()
def train(settings: Settings = None, config: Config = None) -> None:
    """Train an aggregator; the same command again goes on where it stopped.

    Three keys are needed: `diffusemble train experts=[a.safetensors,b.safetensors] data.path=pictures output=mine`.
    """
    from diffusemble.settings import load_config
    from diffusemble.training.config import TrainConfig

    run = load_config(TrainConfig, config, settings or ())
    with progress_bar("starting") as tell:
        from diffusemble.training.train import train as learn

        hush_bars()
        folder = learn(run, progress=lambda now: tell(*training_line(now)))
    out().print(f'ensemble  {folder}\ndraw:     diffusemble generate "a prompt" --ensemble {folder}', markup=False)


@app.command()
def evaluate(
    settings: Settings = None,
    config: Config = None,
    protocol: Annotated[
        str | None, typer.Option(help="zoo, scenes, coco-mig, coco, drawbench, diffusiondb, journeydb or laion-coco.")
    ] = None,
) -> None:
    """Measure an ensemble against its experts and the controls, and write the page of results."""
    from diffusemble.evaluation.protocols import load_evaluation

    run = load_evaluation(protocol, config, settings or ())
    with progress_bar("starting") as tell:
        from diffusemble.evaluation.runs import measure

        hush_bars()
        measure(run, tell)
    out().print(f"results  {run.report}", markup=False)


app.command()(control)
app.command()(report)
app.command()(distill)
app.command()(merge)
app.command()(inspect)
app.command()(block_weights.search)
app.command()(block_weights.export)
app.command()(study.study)


def main() -> None:
    """Entry point of the command."""
    app()


# -- parts of the above ------------------------------------------------------------------------------------------------


def _given(**flags: Any) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None and value != []}


def _named(aggregator: str | None) -> dict[str, str] | None:
    return None if aggregator is None else {"name": aggregator}


def _show(saved: Saved) -> None:
    rows = [("picture", file) for file in saved.pictures] + [("maps", file) for file in saved.attention]
    rows += [("settings", saved.settings)] + ([("sheet", saved.sheet)] if saved.sheet else [])
    for what, file in rows:
        out().print(f"{what:<9} {file}", markup=False)
