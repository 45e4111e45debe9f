"""The ensemble: several denoisers in lockstep, block by block, in the place of one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from diffusemble.aggregators.base import Combiner, Context, Sizes, weighted_tokens
from diffusemble.aggregators.router import Router
from diffusemble.blocks.base import Blocks, Call, Feature, Flow, Inputs, finish
from diffusemble.blocks.caches import refuse_block_caches, refuse_caches_of_the_whole
from diffusemble.blocks.packing import TextLayout
from diffusemble.blocks.turns import take_turns
from diffusemble.ensembles.base import Ensemble, build
from diffusemble.experts.expert import check_block_level
from diffusemble.experts.pipeline import build_pipeline
from diffusemble.registry import BLOCKS, lookup


class EnsembleDenoiser(Ensemble):
    """N frozen denoisers that draw as one; takes the same call as the denoiser it replaces (AFA, section 3).

    After every aggregation point all experts continue on the same feature map, and skip connections carry the
    aggregated features. Each expert keeps its own weights, time embedding and text embedding; text embeddings come
    packed (``pack_text``).

    Args:
        experts: experts or bare diffusers denoisers of one architecture, in the order of their maps.
        aggregator: an aggregator or a router built for them, or the name of one (``build_aggregator``).

    Raises:
        ValueError: the experts cannot run in lockstep, or the aggregator was built for other sizes.
    """

    _layout: TextLayout | None = None

    def _prepare(self) -> None:
        check_block_level(self.experts)
        # A list, so that pipelines' twins of this ensemble (`reading`) see what a memory plan puts around a schedule.
        self.blocks = [blocks_of(denoiser) for denoiser in self.denoisers]

    @property
    def sizes(self) -> Sizes:
        """Channels of every point and widths of the embeddings that an aggregator must be built for."""
        return replace(self.blocks[0].sizes, experts=len(self.experts))

    # -- the story -------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Predict what the experts predict together.

        Takes the arguments of the experts' own ``forward`` and returns its record. Text, its mask, pooled text and
        text positions are packed (``pack_text``). An argument that the block schedule does not know raises.
        """
        arguments = self.by_expert(self._bind(args, kwargs))
        return_dict = arguments.pop("return_dict", True)
        refuse_caches_of_the_whole(self)
        refuse_block_caches(self.blocks)
        call = self.blocks[0].read(arguments)
        own = self.blocks[0].split(call.inputs, len(self.blocks))
        with ExitStack() as stack:
            # One denoiser may stand for several experts; its LoRA must not be scaled several times.
            for blocks in {id(blocks.denoiser): blocks for blocks in self.blocks}.values():
                stack.enter_context(blocks.active(call.inputs))
            prediction = self.predict(call, own)
        record = self.blocks[0].write(prediction)
        return record if return_dict else record.to_tuple()

    def predict(self, call: Call, inputs: Sequence[Inputs]) -> Tensor:
        """What the experts predict together for a call in the form of its family (``blocks.base``).

        Args:
            call: latents ``[b c h w]`` and time; its own ``inputs`` are not read.
            inputs: what every expert is told, one after the other.

        Returns:
            ``[b c h w]``.
        """
        flows = [blocks.open(call.sample, call.timestep, own) for blocks, own in zip(self.blocks, inputs, strict=True)]
        given, clock = torch.as_tensor(call.timestep, device=call.sample.device).reshape(-1), self.blocks[0]
        timestep = given * clock.time_unit + clock.time_origin
        context = Context(
            text=_mean([flow.text for flow in flows]),
            time=_mean([flow.time for flow in flows]),
            sample=call.sample,
            timestep=timestep.expand(len(call.sample)),
            mask=_any([flow.mask for flow in flows if flow.mask is not None]),
        )
        if isinstance(self.aggregator, Router):
            return take_turns(self.blocks, flows, context, self.aggregator)
        last = len(self.points) - 1
        if self.aggregator.points == {last}:
            # Nothing is shared on the way: one expert after the other needs the memory of one.
            outputs = [finish(blocks, flow) for blocks, flow in zip(self.blocks, flows, strict=True)]
        else:
            outputs = self._lockstep(flows, context)
        return self.aggregator(last, outputs, context).feature

    def _lockstep(self, flows: Sequence[Flow], context: Context) -> list[Tensor]:
        for point, name in enumerate(self.points):
            features = [blocks.run(name, flow) for blocks, flow in zip(self.blocks, flows, strict=True)]
            if point in self.aggregator.points and point < len(self.points) - 1:
                features = [self._mix(point, features, context)] * len(features)
            flows = [
                blocks.join(name, flow, feature)
                for blocks, flow, feature in zip(self.blocks, flows, features, strict=True)
            ]
        return [blocks.close(flow) for blocks, flow in zip(self.blocks, flows, strict=True)]

    def _mix(self, point: int, features: Sequence[Feature], context: Context) -> Feature:
        mixed = self.aggregator(point, [feature.map for feature in features], context)
        tokens = [feature.tokens for feature in features if feature.tokens is not None]
        return Feature(mixed.feature, weighted_tokens(tokens, mixed.maps) if tokens else None)

    # -- what stands around it -------------------------------------------------------------------------------------

    @property
    def add_embedding(self) -> Any:
        """What pipelines read of SDXL's added embedding: how wide its input is, with the pooled text of all experts."""
        reader = self.experts[0].components.get("text_encoder_2")
        others = (len(self.experts) - 1) * (0 if reader is None else reader.config.projection_dim)
        own = self.denoisers[0].add_embedding.linear_1.in_features
        return SimpleNamespace(linear_1=SimpleNamespace(in_features=own + others))

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the aggregation points in running order."""
        return self.blocks[0].names

    def reading(self, text: TextLayout | None) -> EnsembleDenoiser:
        """The same ensemble, modules and all, for a pipeline that packs its text like this; None: expert by expert."""
        twin = copy.copy(self)
        twin.__dict__.pop("forward", None)  # where training has put another one around it, that of the original
        twin._layout = text if len(self.blocks) > 1 else None
        return twin

    def by_expert(self, inputs: Inputs) -> dict[str, Any]:
        """Inputs of ``forward`` with all text expert by expert, however the pipeline has packed it."""
        return dict(inputs) if self._layout is None else self._layout.sorted(inputs, len(self.blocks))

    def pipeline(self, cls: type | None = None, **components: Any) -> Any:
        """A ready diffusers pipeline around the ensemble.

        Args:
            cls: pipeline class; the first expert's own class by default.
            components: parts to add or replace, by the names of the class's constructor (``controlnet=...``).

        Returns:
            The pipeline with the ensemble as denoiser, the first expert's VAE and scheduler, and every expert's own
            text encoders.

        Raises:
            ValueError: a part is missing or unknown; bare denoisers bring none.
        """
        return build_pipeline(self, self.experts, cls, components)


def blocks_of(denoiser: nn.Module) -> Blocks:
    """Block schedule of a diffusers denoiser.

    Raises:
        ValueError: no schedule is known for its class.
    """
    return lookup(BLOCKS, type(denoiser).__name__, "denoiser class for block-wise ensembles")(denoiser)


def build_aggregator(name: str, denoisers: Sequence[nn.Module], **options: Any) -> Combiner:
    """Aggregator or router ``name`` for these denoisers; channels and widths are read from them.

    Args:
        name: a row of ``registry.AGGREGATORS``, such as ``"sabw"`` or ``"mean"``.
        denoisers: the experts' denoisers, in order.
        options: its own, such as ``preset="small"``; ``points`` may also be names, or ``"levels"``: one a stage.

    Raises:
        ValueError: unknown name, option, preset or point.
    """
    blocks = blocks_of(denoisers[0])
    return build(name, replace(blocks.sizes, experts=len(denoisers)), blocks.names, options)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).mean(dim=0)


def _any(masks: Sequence[Tensor]) -> Tensor | None:
    """Tokens that belong to some expert's prompt; None where nobody fills up."""
    return torch.stack(list(masks)).amax(dim=0) if masks else None
