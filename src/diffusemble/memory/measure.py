"""How many bytes the weights of a drawing have, part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.memory.bundle import bytes_of, layout, weights_of
from diffusemble.memory.company import Drawers
from diffusemble.memory.networks import Networks
from diffusemble.memory.plan import Weights
from diffusemble.memory.staging import in_lockstep
from diffusemble.memory.visitors import layer_by_layer, own_weights

WHOLE = "whole"
"""The one block of a denoiser that runs whole."""


@dataclass(frozen=True)
class Denoiser:
    """One denoiser's weights.

    Attributes:
        module: the denoiser.
        blocks: what only one of its blocks uses, by the block's name in running order.
        outside: the rest: embeddings, norms, the last convolution, what learns, and what several blocks or denoisers
            share.
    """

    module: nn.Module
    blocks: Mapping[str, tuple[Tensor, ...]]
    outside: tuple[Tensor, ...]


def denoisers_of(ensemble: Drawers) -> tuple[Denoiser, ...]:
    """Every different denoiser, once. At output level a denoiser is one block.

    A denoiser's first weight counts as outside: where that is, a pipeline takes the denoiser to be.
    """
    in_blocks = [_in_blocks(ensemble, module) for module in ensemble.members]
    uses = Counter(id(weight) for blocks in in_blocks for weights in blocks.values() for weight in weights)
    found = []
    for module, blocks in zip(ensemble.members, in_blocks, strict=True):
        shared = {id(next(module.parameters()))}
        own = {
            name: tuple(
                one for one in weights if uses[id(one)] == 1 and id(one) not in shared and not one.requires_grad
            )
            for name, weights in blocks.items()
        }
        taken = {id(weight) for weights in own.values() for weight in weights}
        rest = tuple(weight for weight in weights_of([module]) if id(weight) not in taken)
        found.append(Denoiser(module, own, rest))
    return tuple(found)


def _in_blocks(ensemble: Drawers, module: nn.Module) -> dict[str, tuple[Tensor, ...]]:
    if not isinstance(ensemble, EnsembleDenoiser):
        return {WHOLE: weights_of([module])}
    blocks = next(blocks for blocks in ensemble.blocks if blocks.denoiser is module)
    return {name: weights_of(blocks.modules(name)) for name in blocks.names}


def measure_weights(networks: Networks, storage: str = "same") -> Weights:
    """Sizes for a plan, blocks stored as ``storage``.

    Raises:
        ValueError: something of it is quantised, so that its weights are no plain numbers; or experts at output level
            should be stored in eight bits.
    """
    _refuse_quantised(networks)
    ensemble = networks.ensemble
    whole = not isinstance(ensemble, EnsembleDenoiser)
    if whole and storage != "same":
        raise ValueError(
            f"memory.storage: blocks can be kept as {storage}, but denoisers that run whole (experts at output level, "
            f"members of a scene) are kept as they are. Leave storage out, or use level: block."
        )
    denoisers = denoisers_of(ensemble)
    layouts = [[layout(weights, storage) for weights in one.blocks.values()] for one in denoisers]
    blocks = tuple(tuple(one.bytes for one in blocks) for blocks in layouts)
    if whole:  # they come weight by weight, as they lie
        blocks = tuple((bytes_of(one.blocks[WHOLE]),) for one in denoisers)
    members = list(ensemble.members)
    outside = weights_of([ensemble.aggregator]) + tuple(weight for one in denoisers for weight in one.outside)
    return Weights(
        blocks=blocks,
        decoded=max(one.decoded for blocks in layouts for one in blocks),
        outside=bytes_of({id(weight): weight for weight in outside}.values()),
        encoders=tuple(bytes_of(weights_of([encoder])) for encoder in networks.encoders),
        layers=tuple(
            max(bytes_of(own_weights(group)) for group in layer_by_layer(encoder)) for encoder in networks.encoders
        ),
        controls=tuple(bytes_of(weights_of([control])) for control in networks.controls),
        vaes=tuple(_vae_bytes(networks, vae) for vae in networks.vaes),
        lockstep=isinstance(ensemble, EnsembleDenoiser) and in_lockstep(ensemble.aggregator, ensemble.points),
        whole=whole,
        order=tuple(members.index(denoiser) for denoiser in ensemble.denoisers),
    )


def _refuse_quantised(networks: Networks) -> None:
    for module in (*networks.ensemble.members, *networks.encoders, *networks.controls):
        for name, weight in module.named_parameters():
            if type(weight) is not nn.Parameter or type(weight.data) is not Tensor:
                kind = type(weight.data if type(weight) is nn.Parameter else weight).__name__
                raise ValueError(
                    f"A memory plan moves plain weights, but {name} of a {type(module).__name__} is quantised "
                    f"({kind}). Draw without a plan, or load it unquantised and let the plan store it in eight bits "
                    f"(memory.storage: int8)."
                )


def _vae_bytes(networks: Networks, vae: nn.Module) -> int:
    weights = weights_of([vae])
    return bytes_of(weights) * decoding_type(networks.ensemble, vae).itemsize // weights[0].element_size()


def decoding_type(ensemble: Drawers, vae: nn.Module) -> torch.dtype:
    """Number type in which a VAE decodes: SDXL's pipelines widen one that overflows in half precision."""
    own, kind = next(vae.parameters()).dtype, ensemble.experts[0].pipeline_class
    widens = bool(getattr(vae.config, "force_upcast", False)) and (kind is None or hasattr(kind, "upcast_vae"))
    return torch.float32 if own == torch.float16 and widens else own
