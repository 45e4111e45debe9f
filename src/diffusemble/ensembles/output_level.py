"""The ensemble of experts that differ: each runs whole, and what they predict becomes one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

from diffusemble.aggregators.base import Aggregator, Combiner, Context, Sizes
from diffusemble.blocks.base import Call
from diffusemble.blocks.caches import refuse_caches_of_the_whole
from diffusemble.ensembles.base import Ensemble, build
from diffusemble.experts.expert import Expert
from diffusemble.experts.pipeline import build_pipeline
from diffusemble.families.base import Conditions, Family
from diffusemble.families.check import families_of, terms_of
from diffusemble.families.text import text_parts, unpack_conditions
from diffusemble.parametrisation.paths import Terms, predict_in

POINT = "prediction"
TIME_WIDTH = 128


class OutputEnsembleDenoiser(Ensemble):
    """N frozen denoisers of any architectures that share a latent space, and draw as one.

    It stands in the pipeline of the first expert, whose schedule, prediction and sampler are the ensemble's. Every
    other expert is asked on its own schedule, with its own text, and answers in the first one's terms
    (``paths.predict_in``). The aggregator combines the predictions: its only point is the last one.

    Args:
        experts: with the parts of their pipelines; the first one's pipeline is the ensemble's.
        aggregator: built for them, or the name of one (``build_output_aggregator``).

    Raises:
        ValueError: the experts share no latent space or lack parts, or the aggregator was built for others.
    """

    def _prepare(self) -> None:
        self.families = families_of(self.experts)
        self.terms = tuple(terms_of(expert.components["scheduler"]) for expert in self.experts)

    @property
    def config(self) -> Any:
        """Configuration of the first expert's denoiser; a FLUX's says that guidance is read as soon as any reads it."""
        own = super().config
        told = any(denoiser.config.get("guidance_embeds") for denoiser in self.denoisers)
        return FrozenDict({**own, "guidance_embeds": True}) if told and "guidance_embeds" in own else own

    @property
    def sizes(self) -> Sizes:
        """Channels of a prediction and widths of the embeddings that an aggregator must be built for."""
        return _sizes(self.families)

    # -- the story -------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Predict what the experts predict together.

        Takes the arguments of the first expert's own ``forward``; its text is that of all experts
        (``pack_conditions``). With several experts, an argument that means something to the first one's architecture
        alone raises.
        """
        arguments = self._bind(args, kwargs)
        return_dict = arguments.pop("return_dict", True)
        refuse_caches_of_the_whole(self)
        first = self.families[0]
        call = first.read(arguments)
        self._refuse(call.inputs)
        conditions = unpack_conditions(call.inputs["encoder_hidden_states"], self.families)
        self._compare(call.inputs.get("pooled_projections"), conditions[0])
        self._refuse_half_guided(call.inputs.get("timestep_cond"), conditions[0])
        outputs = [self._ask(index, call, own) for index, own in enumerate(conditions)]
        predictions = [output[:, : first.channels] for output in outputs]
        mixed = self.aggregator(0, predictions, self._context(call, conditions[0])).feature
        variance = outputs[0][:, first.channels :]  # learned by the first expert for its own sampler
        prediction = first.write(torch.cat([mixed, variance], dim=1) if variance.shape[1] else mixed)
        return first.record(sample=prediction) if return_dict else (prediction,)

    def _ask(self, index: int, call: Call, conditions: Conditions) -> Tensor:
        first, family = self.families[0], self.families[index]
        if index == 0:
            return family.predict(call.sample, call.timestep, family.own(call.inputs, conditions))
        given = call.timestep * first.time_unit + first.time_origin

        def predict(sample: Tensor, time: Any) -> Tensor:
            same = time is given and family.time_unit == first.time_unit
            asked = call.timestep if same else (time - family.time_origin) / family.time_unit
            own = torch.as_tensor(asked, device=sample.device)
            arguments = family.arguments(sample, conditions, call.inputs)
            return family.predict(sample, own.reshape(-1).expand(len(sample)), arguments)[:, : family.channels]

        return predict_in(self.terms[0], self.terms[index], predict, call.sample, given)

    def _context(self, call: Call, conditions: Conditions) -> Context:
        """The first expert's text, and the level of noise, which means the same to all."""
        sample, first = call.sample, self.families[0]
        times = torch.as_tensor(call.timestep).reshape(-1).expand(len(sample)) * first.time_unit + first.time_origin
        return Context(
            text=conditions["encoder_hidden_states"],
            time=embed_level(self.terms[0], times).to(sample),
            sample=sample,
            timestep=times.to(sample.device),
            mask=conditions.get("attention_mask"),
        )

    def _refuse(self, inputs: Mapping[str, Any]) -> None:
        if len(self.families) == 1:
            return
        known = self.families[0].shared | {"encoder_hidden_states"}
        added = inputs.get("added_cond_kwargs") or {}
        strange = [name for name, value in inputs.items() if name not in known and _says_something(value)]
        strange += [name for name in added if name not in ADDED and _says_something(added[name])]
        if strange:
            raise ValueError(_ONE_ARCHITECTURE.format(strange[0]))

    def _compare(self, pooled: Tensor | None, conditions: Conditions) -> None:
        """FLUX reads ``prompt`` with CLIP and ``prompt_2`` with T5, and only the second reaches the other experts."""
        own = conditions.get("pooled_projections")
        if len(self.families) == 1 or pooled is None or own is None:
            return
        if not torch.allclose(pooled.float(), own.float(), rtol=0.01, atol=0.01):
            raise ValueError(
                "The pooled text is of another prompt than the text. FLUX reads prompt with CLIP and prompt_2 with T5, "
                "but at output level the experts read one prompt with all their encoders. Leave prompt_2 out."
            )

    def _refuse_half_guided(self, told: Tensor | None, conditions: Conditions) -> None:
        """A latent consistency model is told the scale, and its pipeline leaves the others without guidance."""
        none = conditions.get("timestep_cond")
        if told is None or none is None or torch.allclose(told.float(), none.float(), atol=0.01):
            return
        for number, family in enumerate(self.families[1:], start=2):
            if family.shapes.get("timestep_cond") != told.shape[1:]:
                raise ValueError(
                    f"Expert 1 ({self.experts[0].name!r}) is told the guidance scale and guides by itself, so its "
                    f"pipeline asks for no other guidance, and expert {number} ({self.experts[number - 1].name!r}) "
                    f"would draw without. Name that one first (then guidance is the ensemble's), or draw with "
                    f"guidance 1."
                )

    # -- what stands around it -------------------------------------------------------------------------------------

    @property
    def points(self) -> tuple[str, ...]:
        """The one point where experts meet."""
        return (POINT,)

    @property
    def blocks(self) -> NoReturn:  # type: ignore[override]
        """None.

        Raises:
            ValueError: always; what needs blocks cannot work.
        """
        raise ValueError(
            "At output level every expert runs whole, so there are no common blocks. What works on those is for "
            "experts of one architecture that meet in them: use level: block (EnsembleDenoiser)."
        )

    def load_lora_adapter(self, weights: Any, *args: Any, adapter_name: str | None = None, **options: Any) -> NoReturn:
        """Refused: a LoRA fits one architecture.

        Raises:
            ValueError: always; names the way that works.
        """
        raise ValueError(
            "A LoRA is made for one architecture, but the experts of an ensemble at output level need not share one. "
            'Add it to the experts it fits when you load them: load_experts(["a.safetensors+style.safetensors:0.7"]).'
        )

    def _load_ip_adapter_weights(self, *args: Any, **options: Any) -> NoReturn:
        raise ValueError(_ONE_ARCHITECTURE.format("An IP-Adapter"))

    def reading(self, text: Any) -> OutputEnsembleDenoiser:
        """Itself: the text of all experts comes in one packing, whatever the architecture of the first one."""
        return self

    def pipeline(self, cls: type | None = None, **components: Any) -> Any:
        """A ready diffusers pipeline around the ensemble.

        Args:
            cls: pipeline class for the first expert's architecture; its own class by default.
            components: parts to add or replace, by the names of the class's constructor.

        Raises:
            ValueError: a part is missing or unknown, or made for one architecture.
        """
        for part, what in (("controlnet", "A ControlNet"), ("adapter", "A T2I-adapter")):
            if components.get(part) is not None:
                raise ValueError(_ONE_ARCHITECTURE.format(what))
        taken = inspect.signature(cls or self.experts[0].pipeline_class or object).parameters
        texts = {name: part for name, part in text_parts(self.families).items() if name in taken}
        return build_pipeline(self, self.experts[:1], cls, {**texts, **components})

    def _check(self) -> None:
        if not isinstance(self.aggregator, Aggregator):
            raise ValueError(
                f"{type(self.aggregator).__name__} chooses who runs from block to block, but at output level all "
                f"experts run. Choose one that mixes: mean, magicfusion or sabw."
            )
        super()._check()


_ONE_ARCHITECTURE = (
    "{} is made for one architecture, but the experts of an ensemble at output level need not share one, and each runs "
    "by itself. Leave it out, use EnsembleDenoiser (level: block) if the experts are of one architecture, or aggregate "
    "pipelines (diffusemble.aggregate), each with its own controls."
)
ADDED = ("text_embeds", "time_ids", "resolution", "aspect_ratio")
"""What pipelines give beside the text that every expert that needs it can be given, or has of its own."""


def build_output_aggregator(name: str, experts: Sequence[Expert], **options: Any) -> Combiner:
    """Aggregator ``name`` for the predictions of these experts.

    Args:
        name: a row of ``registry.AGGREGATORS``.
        experts: in order; channels and the width of the text are the first one's.
        options: its own, such as ``preset="tiny"``.

    Raises:
        ValueError: unknown name, option or preset, or an aggregator that chooses before experts run.
    """
    return build(name, _sizes(families_of(experts)), (POINT,), options)


def embed_level(terms: Terms, times: Tensor) -> Tensor:
    """Sinusoids ``[b 128]`` of the angle between picture and noise, atan(σ / α), from 0 to 1000 for a right one."""
    point = terms.path.point(times.detach().cpu().double())
    angle = torch.atan2(point.sigma, point.alpha) / (torch.pi / 2)
    embedding: Tensor = get_timestep_embedding(1000 * angle.float(), TIME_WIDTH)
    return embedding


def _sizes(families: Sequence[Family]) -> Sizes:
    first = families[0]
    text = first.shapes["encoder_hidden_states"][-1]
    return Sizes((first.channels,), TIME_WIDTH, text, len(families), first.channels)


def _says_something(value: Any) -> bool:
    return value is not None and not (isinstance(value, Mapping) and not value)
