"""From a configuration to pictures: load the experts, build their ensemble, draw, save with the configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffusemble.adapters.files import check_files
from diffusemble.adapters.install import adapter_parts
from diffusemble.adapters.two_stages import refiner_pipeline
from diffusemble.aggregators.storage import name_of
from diffusemble.calls import guidance_of, longest_prompt
from diffusemble.comparison import TOGETHER, sheet_of, title_of, ways_of
from diffusemble.config.adapters import AdapterConfig
from diffusemble.config.ensemble import AggregatorConfig, EnsembleConfig, RefinerConfig
from diffusemble.config.generate import GenerateConfig, MadeWith
from diffusemble.drawing import Picture, Stages, choose_maps, draw_by, install, placement
from diffusemble.ensembles.assembly import assemble, open_ensemble
from diffusemble.ensembles.base import Ensemble
from diffusemble.experts.load import load_experts
from diffusemble.memory.keep import MemoryReport, on_host, within_memory
from diffusemble.pictures.attention import attention_picture
from diffusemble.pictures.files import free_stem
from diffusemble.pictures.metadata import save_png
from diffusemble.provenance import differences, made_with
from diffusemble.registry import AGGREGATORS, lookup
from diffusemble.settings import dump_config
from diffusemble.zoo import trained_ensemble

log = logging.getLogger(__name__)

Progress = Callable[[float, str], None]
"""Called with the share that is done, 0 to 1, and what is being done."""


@dataclass(frozen=True)
class Saved:
    """Files of a run; ``attention`` and ``sheet`` where they were asked for."""

    pictures: tuple[Path, ...]
    attention: tuple[Path, ...]
    sheet: Path | None
    settings: Path


@dataclass(frozen=True)
class Pictures:
    """Everything a run drew.

    Attributes:
        pictures: the ensemble's, prompt by prompt, and seed by seed within a prompt.
        config: the full configuration and what it was drawn with; draws the same pictures again.
        experts: names of the experts, in the order of the maps.
        sheet: the comparison, if it was asked for.
        memory: the memory plan and what it took, if there was one.
    """

    pictures: tuple[Picture, ...]
    config: GenerateConfig
    experts: tuple[str, ...]
    sheet: Image.Image | None = None
    memory: MemoryReport | None = None

    def attention(self, number: int = 0) -> Image.Image:
        """The aggregator's maps over picture ``number`` (from 0).

        Raises:
            ValueError: the configuration did not ask for maps.
        """
        picture = self.pictures[number]
        if not picture.maps:
            raise ValueError("These pictures were drawn without maps. Set attention: true in their configuration.")
        return attention_picture(picture.image, self.experts, picture.maps, picture.prompt)

    def save(self, out: str | Path | None = None) -> Saved:
        """Write pictures and configuration under a new name; nothing is overwritten.

        Args:
            out: a folder, or a file name that ends with ``.png``; that of the configuration by default.
        """
        several = len(self.pictures) > 1
        counters = [f"-{number:02d}" if several else "" for number, _ in enumerate(self.pictures, start=1)]
        ends = [f"{counter}{end}" for counter in counters for end in (".png", "-attention.png")]
        stem = free_stem(Path(out or self.config.out), self.pictures[0].prompt, [*ends, "-compare.png", ".yaml"])
        document = dump_config(self.config)

        def write(image: Image.Image, end: str, notes: Mapping[str, str]) -> Path:
            return save_png(image, f"{stem}{end}", document, notes)

        drawn, maps = [], []
        for number, (picture, counter) in enumerate(zip(self.pictures, counters, strict=True)):
            notes = {"prompt": picture.prompt, "seed": str(picture.seed)}
            drawn.append(write(picture.image, f"{counter}.png", notes))
            if picture.maps:
                maps.append(write(self.attention(number), f"{counter}-attention.png", notes))
        sheet = write(self.sheet, "-compare.png", {}) if self.sheet else None
        settings = Path(f"{stem}.yaml")
        settings.write_text(document, encoding="utf-8")
        return Saved(tuple(drawn), tuple(maps), sheet, settings)


def generate(config: GenerateConfig, progress: Progress | None = None) -> Pictures:
    """Draw what the configuration says.

    Args:
        config: see ``GenerateConfig``.
        progress: told how far the drawing is.

    Returns:
        The pictures in memory; ``.save()`` writes them with their configuration.

    Raises:
        ValueError: the experts cannot be loaded or combined, or the configuration asks for maps that this ensemble
            does not have.
    """
    tell = progress or (lambda share, what: None)
    check_files(config)
    tell(0.0, "loading experts")
    ensemble = build_ensemble(on_host(config))
    refiner = None if config.refiner is None else build_ensemble(_beside(config.refiner, on_host(config)))
    choice = choose_maps(ensemble, config)
    stages = _stages(ways_of(ensemble) if config.compare else {TOGETHER: ensemble}, refiner, config)
    with within_memory(config, tuple(stages.values()), refiner) as keeper:
        now = made_with(ensemble, refiner)
        _warn(config, stages[TOGETHER], now)
        drawn = {}
        for number, (title, own) in enumerate(stages.items()):
            part = _part(tell, title_of(ensemble) if title == TOGETHER else title, number, len(stages))
            drawn[title] = draw_by(own, config, choice if title == TOGETHER else None, part)
        memory = None if keeper is None else keeper.report()

    names = tuple(expert.name for expert in ensemble.experts)
    sheet = sheet_of(drawn, ensemble, config) if config.compare else None
    return Pictures(drawn[TOGETHER], config.model_copy(update={"made_with": now}), names, sheet, memory)


def build_ensemble(config: EnsembleConfig) -> Ensemble:
    """Experts and aggregator of a configuration, on their device."""
    device, dtype = placement(config.device, config.dtype)
    folder = _saved(config)
    loras = config.loras if isinstance(config, AdapterConfig) else ()
    if folder is not None:
        ensemble = open_ensemble(folder, dtype=dtype, device=device, added=loras)
    else:
        sources = ["+".join((source, *loras)) for source in config.experts]
        experts = load_experts(sources, dtype=dtype, device=device, base=config.base, vae=config.vae)
        choice = config.aggregator or AggregatorConfig(name="mean")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # weights that nobody trained are the same the next time
            ensemble = assemble(experts, config.level, choice.name, _options(choice, config))
    ensemble.aggregator.to(device=device, dtype=dtype)
    return ensemble.eval()


# -- parts of the above ------------------------------------------------------------------------------------------------


def _saved(config: EnsembleConfig) -> Path | None:
    """Folder of the saved ensemble: the given one, or the zoo's for a whole group if nothing else is asked for."""
    source = config.ensemble
    if source is None and config.aggregator is None and config.level == "block" and len(config.experts) == 1:
        source = config.experts[0]
    kind, _, group = (source or "").partition(":")
    trained = trained_ensemble(group) if kind == "zoo" else None
    return trained or (None if config.ensemble is None else Path(config.ensemble))


def _beside(refiner: RefinerConfig, config: GenerateConfig) -> RefinerConfig:
    """The refiner's configuration, with device and number type of the first stage where it names none."""
    own = {key: getattr(config, key) for key in ("device", "dtype") if getattr(refiner, key) == "auto"}
    return refiner.model_copy(update=own)


def _options(choice: AggregatorConfig, config: EnsembleConfig) -> dict[str, Any]:
    """The aggregator's own options; one that asks for the guidance scale gets that of the drawing."""
    asks = "guidance" in lookup(AGGREGATORS, choice.name, "aggregator").Options.model_fields
    guidance = {"guidance": config.guidance} if asks and isinstance(config, GenerateConfig) else {}
    return {**guidance, **choice.options}


def _warn(config: GenerateConfig, stages: Stages, now: MadeWith) -> None:
    ensemble, pipeline = stages.ensemble, stages.first
    if _saved(config) is None and any(True for _ in ensemble.aggregator.parameters()):
        log.warning(
            "The weights of aggregator %r are fresh: it was not trained for these experts. Train it (diffusemble "
            "train), then draw with --ensemble and the folder that this leaves.",
            name_of(ensemble.aggregator),
        )
    for difference in differences(config.made_with, now) if config.made_with else ():
        log.warning("The picture may differ from the saved one: %s.", difference)
    if pipeline.config.get("is_distilled") and config.guidance > 1 and "guidance" in config.model_fields_set:
        log.warning("Guidance %g changes nothing: these experts are distilled, and draw without.", config.guidance)
    parts = ensemble.experts[0].components
    # What CLIP does not see of a prompt, T5 may (FLUX, SD3).
    tokenizers = [part for name, part in parts.items() if name.startswith("tokenizer") and part is not None]
    tokenizer = max(tokenizers, key=lambda one: one.model_max_length)
    longest = min([tokenizer.model_max_length, *longest_prompt(pipeline).values()])
    for prompt in (*config.prompts, config.negative):
        ids = tokenizer(prompt).input_ids
        if len(ids) > longest:
            end = int(ids[-1] == tokenizer.eos_token_id)  # which language models' tokenizers leave out
            rest = tokenizer.decode(ids[longest - end : len(ids) - end])
            log.warning("The prompt %r is too long; the experts do not see its end: %r.", prompt, rest)


def _part(tell: Progress, what: str, number: int, count: int) -> Callable[[float], None]:
    """Progress of one of ``count`` equal parts of the run."""
    return lambda share: tell((number + share) / count, what)


def _stages(ways: Mapping[str, Ensemble], refiner: Ensemble | None, config: GenerateConfig) -> dict[str, Stages]:
    """Pipelines for every way, with the same ControlNets and image encoder."""
    parts = adapter_parts(ways[TOGETHER], config)
    firsts = {title: install(way, config, parts) for title, way in ways.items()}
    for first in firsts.values():
        guidance_of(first, config.guidance, [config.negative])  # refuses what one of them cannot do before any draws
    second = None if refiner is None else refiner_pipeline(refiner, firsts[TOGETHER])
    return {title: Stages(ways[title], first, second) for title, first in firsts.items()}
