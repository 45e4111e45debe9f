"""The ensemble: several denoisers in lockstep, block by block, in the place of one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from diffusemble.aggregators.base import Aggregator, Context
from diffusemble.aggregators.storage import create
from diffusemble.blocks.base import Blocks
from diffusemble.experts.expert import Expert, as_experts, check_block_level
from diffusemble.experts.text import PackedTextEncoder, unpack_text
from diffusemble.registry import BLOCKS, lookup


class EnsembleDenoiser(nn.Module):
    """N frozen denoisers that draw as one; takes the same call as the denoiser it replaces (AFA, section 3).

    After every aggregation point all experts continue on the same feature map, and skip connections carry the
    aggregated features. Each expert keeps its own weights, time embedding and text embedding; text embeddings come
    packed (``pack_text``).

    Args:
        experts: experts or bare diffusers denoisers of one architecture, in the order of their maps.
        aggregator: an aggregator built for them, or the name of one (``build_aggregator``).

    Raises:
        ValueError: the experts cannot run in lockstep, or the aggregator was built for other sizes.
    """

    aggregator: Aggregator

    def __init__(self, experts: Sequence[Expert | nn.Module], aggregator: Aggregator | str = "mean") -> None:
        super().__init__()
        self.experts = as_experts(experts)
        check_block_level(self.experts)
        self.denoisers = nn.ModuleList(expert.denoiser for expert in self.experts)
        self.denoisers.requires_grad_(False)
        self.blocks: tuple[Blocks, ...] = tuple(blocks_of(denoiser) for denoiser in self.denoisers)
        if isinstance(aggregator, str):
            aggregator = build_aggregator(aggregator, self.denoisers)
        self._check(aggregator)
        self.aggregator = aggregator
        self._signature = inspect.signature(type(self.denoisers[0]).forward)

    # -- the story -------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predict what the experts predict together.

        Takes the arguments of the experts' own ``forward``; ``encoder_hidden_states [b n·s d]``, its mask and SDXL's
        pooled ``text_embeds [b n·d]`` are packed. An argument that the block schedule does not know raises.
        """
        sample, timestep, inputs = self._bind(args, kwargs)
        own = split_inputs(inputs, len(self.blocks))
        with ExitStack() as stack:
            for blocks, mine in zip(self.blocks, own, strict=True):
                stack.enter_context(blocks.active(mine))
            prediction = self._lockstep(sample, timestep, own)
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)

    def _lockstep(self, sample: Tensor, timestep: Any, inputs: Sequence[Mapping[str, Any]]) -> Tensor:
        flows = [blocks.open(sample, timestep, own) for blocks, own in zip(self.blocks, inputs, strict=True)]
        context = Context(text=_mean([flow.text for flow in flows]), time=_mean([flow.time for flow in flows]))
        for point, name in enumerate(self.points):
            outputs = [blocks.run(name, flow) for blocks, flow in zip(self.blocks, flows, strict=True)]
            if point == len(self.points) - 1:
                outputs = [blocks.close(output) for blocks, output in zip(self.blocks, outputs, strict=True)]
                break
            if point in self.aggregator.points:
                outputs = [self.aggregator(point, outputs, context).feature] * len(outputs)
            flows = [
                blocks.join(name, flow, output)
                for blocks, flow, output in zip(self.blocks, flows, outputs, strict=True)
            ]
        return self.aggregator(len(self.points) - 1, outputs, context).feature

    # -- what stands around it -------------------------------------------------------------------------------------

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the aggregation points in running order."""
        return self.blocks[0].names

    @property
    def config(self) -> Any:
        """Configuration of the first expert's denoiser, as pipelines read it."""
        return self.denoisers[0].config

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the experts."""
        return next(self.denoisers[0].parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the experts."""
        return next(self.denoisers[0].parameters()).device

    @property
    def add_embedding(self) -> nn.Module:
        """SDXL's added embedding of the first expert; pipelines read its width."""
        return self.denoisers[0].add_embedding

    @property
    def encoder_hid_proj(self) -> nn.Module | None:
        """Image-prompt projection of the first expert; pipelines read its presence."""
        return self.denoisers[0].encoder_hid_proj

    def train(self, mode: bool = True) -> EnsembleDenoiser:
        """Set the aggregator's mode; the frozen experts stay in evaluation mode."""
        super().train(mode)
        self.denoisers.eval()
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the experts' resnets in the backward pass instead of keeping their activations."""
        for denoiser in self.denoisers:
            # diffusers' denoisers checkpoint only in training mode's absence of dropout; experts have none.
            denoiser.enable_gradient_checkpointing()

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """FreeU (arXiv 2309.11497) on every expert, as in diffusers."""
        for denoiser in self.denoisers:
            denoiser.enable_freeu(s1=s1, s2=s2, b1=b1, b2=b2)

    def disable_freeu(self) -> None:
        """Undo ``enable_freeu``."""
        for denoiser in self.denoisers:
            denoiser.disable_freeu()

    def pipeline(self, cls: type | None = None, **components: Any) -> Any:
        """A ready diffusers pipeline around the ensemble.

        Args:
            cls: pipeline class; the first expert's own class by default.
            components: parts to add or replace, by the names of the class's constructor (``controlnet=...``).

        Returns:
            The pipeline with the ensemble as denoiser, the first expert's VAE and scheduler, and every expert's own
            text encoders.

        Raises:
            ValueError: the experts are bare denoisers, so that there is nothing to build a pipeline from.
        """
        first = self.experts[0]
        cls = cls or first.pipeline_class
        if cls is None or not all(expert.components for expert in self.experts):
            raise ValueError(
                "A pipeline needs text encoders and a VAE, but these experts are bare denoisers. Load them with "
                "load_experts([...])."
            )
        accepted = inspect.signature(cls.__init__).parameters
        parts = {**first.components, **self._text_encoders(), **components}
        parts["unet"] = self
        if "requires_safety_checker" in accepted:
            parts.setdefault("safety_checker", None)
            parts["requires_safety_checker"] = parts["safety_checker"] is not None
        missing = [
            name
            for name, parameter in accepted.items()
            if name not in ("self", "safety_checker") and name not in parts and parameter.default is parameter.empty
        ]
        if "feature_extractor" in missing:
            parts["feature_extractor"] = None
            missing.remove("feature_extractor")
        if missing:
            raise ValueError(f"{cls.__name__} also needs {missing[0]!r}: pass it as pipeline(cls, {missing[0]}=...).")
        return cls(**{name: part for name, part in parts.items() if name in accepted})

    def _text_encoders(self) -> dict[str, nn.Module]:
        packed = {}
        for part, tokens in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
            encoders = [expert.components.get(part) for expert in self.experts]
            if all(encoder is not None for encoder in encoders):
                tokenizer = self.experts[0].components[tokens]
                packed[part] = PackedTextEncoder(encoders, tokenizer.model_max_length, tokenizer.eos_token_id)
        return packed

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write the aggregator's weights, and references with SHA-256 to the experts; the experts stay where they are."""
        from diffusemble.experts.reference import save_ensemble

        save_ensemble(folder, self.experts, self.aggregator)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **load_options: Any) -> EnsembleDenoiser:
        """Read what ``save_pretrained`` wrote: load the experts from their sources, check their hashes, and install
        the aggregator. ``load_options`` go to ``load_experts``.

        Raises:
            ValueError: an expert's file is missing or has changed; the message names it.
        """
        from diffusemble.experts.reference import load_ensemble

        return cls(*load_ensemble(folder, **load_options))

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any, dict[str, Any]]:
        bound = dict(self._signature.bind(self, *args, **kwargs).arguments)
        bound.pop("self")
        return bound.pop("sample"), bound.pop("timestep"), bound

    def _check(self, aggregator: Aggregator) -> None:
        needed = replace(self.blocks[0].sizes, experts=len(self.experts))
        if aggregator.sizes != needed:
            raise ValueError(
                f"This aggregator was built for {aggregator.sizes}, but the experts need {needed}. Build or train one "
                f"for exactly these experts (build_aggregator, `diffusemble train`)."
            )


def blocks_of(denoiser: nn.Module) -> Blocks:
    """Block schedule of a diffusers denoiser.

    Raises:
        ValueError: no schedule is known for its class.
    """
    return lookup(BLOCKS, type(denoiser).__name__, "denoiser class for block-wise ensembles")(denoiser)


def build_aggregator(name: str, denoisers: Sequence[nn.Module], **options: Any) -> Aggregator:
    """Aggregator ``name`` for these denoisers; channels and widths are read from them.

    Args:
        name: a row of ``registry.AGGREGATORS``, such as ``"sabw"`` or ``"mean"``.
        denoisers: the experts' denoisers, in order.
        options: the aggregator's own options, such as ``preset="small"``.

    Raises:
        ValueError: unknown name, option or preset.
    """
    return create(name, replace(blocks_of(denoisers[0]).sizes, experts=len(denoisers)), options)


def split_inputs(inputs: Mapping[str, Any], n: int) -> tuple[dict[str, Any], ...]:
    """One set of denoiser inputs per expert: packed text is unpacked, everything else is shared."""
    text = unpack_text(inputs["encoder_hidden_states"], n)
    own = tuple({**inputs, "encoder_hidden_states": part} for part in text)
    mask, added = inputs.get("encoder_attention_mask"), inputs.get("added_cond_kwargs")
    if mask is not None and mask.shape[1] != text[0].shape[1]:
        for mine, part in zip(own, unpack_text(mask, n), strict=True):
            mine["encoder_attention_mask"] = part
    if added is not None and added.get("text_embeds") is not None:
        for mine, part in zip(own, unpack_text(added["text_embeds"], n), strict=True):
            mine["added_cond_kwargs"] = {**added, "text_embeds": part}
    return own


@dataclass(frozen=True)
class AttentionMaps:
    """Recorded weights: ``maps[j]`` lists one ``[b n h w]`` float32 tensor per call at point j; ``points`` names them."""

    points: tuple[str, ...]
    calls: tuple[list[Tensor], ...] = field(repr=False)

    def __getitem__(self, point: int) -> list[Tensor]:
        """Maps of one point, a tensor per call."""
        return self.calls[point]

    def __len__(self) -> int:
        """Number of points."""
        return len(self.calls)


@contextmanager
def record_attention(ensemble: EnsembleDenoiser) -> Iterator[AttentionMaps]:
    """Keep the maps of every aggregated point while the block runs; points that are not aggregated stay empty."""
    maps = AttentionMaps(ensemble.points, tuple([] for _ in ensemble.points))

    def keep(_: nn.Module, args: tuple[Any, ...], mixed: Any) -> None:
        maps.calls[args[0]].append(mixed.maps.detach().float().cpu().clone())

    handle = ensemble.aggregator.register_forward_hook(keep)
    try:
        yield maps
    finally:
        handle.remove()


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).mean(dim=0)
