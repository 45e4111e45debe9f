"""What is compared: the experts, the controls that combine them without learning, and the ensemble."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffusemble.aggregators.base import Aggregator, AggregatorOptions, Combiner, Context, Sizes
from diffusemble.ensembles.block_level import EnsembleDenoiser, build_aggregator
from diffusemble.evaluation.heldout import in_terms
from diffusemble.evaluation.pictures import generator_of
from diffusemble.experts.expert import Expert
from diffusemble.merging.methods import weighted_average
from diffusemble.training.feeds.base import fed_denoiser, feed_of, joined, whole_pictures
from diffusemble.training.objective import Diffusion, to_device
from diffusemble.training.schedule import process_of

LEARNED = "ensemble"


@dataclass(frozen=True)
class System:
    """One way to draw.

    Attributes:
        name: short and fit for a file name.
        title: for tables.
        kind: ``"expert"``, ``"inside"``, ``"control"``, ``"ensemble"`` or ``"base"``.
        pipeline: a diffusers pipeline; whatever its denoiser is, its text encoder fits.
        settings: arguments of the pipeline's call that this way has instead of the run's (``num_inference_steps``).
        guided: the denoiser needs both halves of guidance, the empty prompt's and the prompt's, to predict either.
    """

    name: str
    title: str
    kind: str
    pipeline: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    guided: bool = False

    @property
    def diffusion(self) -> Diffusion:
        """The process that the denoiser was trained with."""
        return process_of(self.pipeline.scheduler)

    @torch.no_grad()
    def predict(self, noisy: Tensor, times: Tensor, prompts: Sequence[str]) -> Tensor:
        """Noise (of flow matching: velocity) ``[b c h w]`` in ``noisy [b c h w]``, without guidance.

        ``times [b]`` are points of the schedule, counted from 0.
        """
        feed, diffusion, denoiser = feed_of(self.pipeline), self.diffusion.to(noisy.device), fed_denoiser(self.pipeline)

        def ask(texts: Sequence[str], empty: bool) -> dict[str, Any]:
            text = {name: part.to(noisy.device) for name, part in feed.encode(self.pipeline, texts, empty).items()}
            height, width = (side * self.pipeline.vae_scale_factor for side in noisy.shape[-2:])
            return to_device(feed.inputs(text, whole_pictures(len(texts), height, width, empty)), noisy.device)

        inputs = ask(prompts, empty=False)
        if self.guided:
            both = joined(ask([""] * len(prompts), empty=True), inputs)
            twice = torch.cat([noisy, noisy]), torch.cat([times, times])
            predicted = feed.predict(denoiser, twice[0], diffusion.times[twice[1]], both).chunk(2)[1]
        else:
            predicted = feed.predict(denoiser, noisy, diffusion.times[times], inputs)
        return in_terms(predicted, noisy, diffusion, times)

    def draw(self, prompts: Sequence[str], numbers: Sequence[int], seed: int, **settings: Any) -> Tensor:
        """Pictures ``[b 3 h w]`` in [0, 1]; picture number i starts from the same noise in every system and batch.

        ``settings`` are the pipeline's own (``num_inference_steps``, ``guidance_scale``).
        """
        self.pipeline.set_progress_bar_config(disable=True)
        generators = [generator_of(seed, "draw", number) for number in numbers]
        call = {"prompt": list(prompts), "generator": generators, "output_type": "pt", **settings, **self.settings}
        images: Tensor = self.pipeline(**call).images
        return images.float().cpu()


class Only(Aggregator):
    """The control *expert inside the framework*: expert ``index`` has all the weight everywhere."""

    def __init__(self, sizes: Sizes, index: int) -> None:
        super().__init__(sizes, AggregatorOptions())
        self.index = index

    def weigh(self, point: int, features: Sequence[Tensor], context: Context) -> Tensor:
        """One-hot maps ``[b n h w]``."""
        batch, _, height, width = features[0].shape
        maps = features[0].new_zeros(batch, len(features), height, width)
        maps[:, self.index] = 1
        return maps


def build_systems(ensemble: EnsembleDenoiser, base: Expert | None = None, guidance: float = 7.5) -> tuple[System, ...]:
    """Every system of the comparison, experts first, the ensemble last, then the base model.

    Args:
        ensemble: the experts and the trained aggregator.
        base: the model the experts were fine-tuned from.
        guidance: guidance scale they will draw with; MagicFusion measures with it.
    """
    experts = ensemble.experts
    denoisers = [expert.denoiser for expert in experts]
    sizes = ensemble.aggregator.sizes

    def together(aggregator: Combiner) -> Any:
        return EnsembleDenoiser(experts, aggregator).eval().pipeline()

    alone = [System(e.name, f"expert *{e.name}*", "expert", plain_pipeline(e)) for e in experts]
    inside = [
        System(f"{e.name}-inside", f"*{e.name}* inside the framework", "inside", together(Only(sizes, index)))
        for index, e in enumerate(experts)
    ]
    controls = [
        System("weight-average", "weight average", "control", plain_pipeline(average_expert(experts))),
        System(
            "noise-average",
            "noise average",
            "control",
            together(build_aggregator("mean", denoisers, points="last")),
        ),
        System("block-average", "block average", "control", together(build_aggregator("mean", denoisers))),
        System(
            "magicfusion",
            "MagicFusion",
            "control",
            together(build_aggregator("magicfusion", denoisers, guidance=guidance)),
            guided=True,
        ),
    ]
    learned = System(LEARNED, "AFA ensemble", "ensemble", ensemble.pipeline())
    origin = [] if base is None else [System("base", "base model", "base", plain_pipeline(base))]
    return (*alone, *inside, *controls, learned, *origin)


def plain_pipeline(expert: Expert) -> Any:
    """The expert in its own diffusers pipeline, without any part of this package."""
    own = {name: part for name, part in expert.components.items() if name.startswith("text_encoder")}
    pipeline = EnsembleDenoiser([expert]).pipeline(**own)
    place = "unet" if "unet" in pipeline.components else "transformer"
    pipeline.register_modules(**{place: expert.denoiser})
    return pipeline


def average_expert(experts: Sequence[Expert]) -> Expert:
    """One expert with the mean of all experts' weights; parts that are the same in all stay as they are."""
    components = dict(experts[0].components)
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if components.get(name) is not None:
            components[name] = _average([expert.components[name] for expert in experts])
    denoiser = _average([expert.denoiser for expert in experts])
    return replace(experts[0], name="weight average", denoiser=denoiser, components=components)


def _average(modules: Sequence[nn.Module]) -> nn.Module:
    if all(module is modules[0] for module in modules):
        return modules[0]
    merged = copy.deepcopy(modules[0])
    merged.load_state_dict(weighted_average([module.state_dict() for module in modules]))
    return merged.eval()


def select(systems: Sequence[System], names: Sequence[str]) -> tuple[System, ...]:
    """The systems of these names; all if no names are given.

    Raises:
        ValueError: there is no system of a name.
    """
    known = {system.name: system for system in systems}
    for name in names:
        if name not in known:
            raise ValueError(f"There is no system {name!r} to evaluate. Choose among: {', '.join(known)}.")
    return tuple(known[name] for name in names) if names else tuple(systems)
