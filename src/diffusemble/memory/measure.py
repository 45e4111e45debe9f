"""How many bytes an ensemble's weights have, part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.memory.bundle import bytes_of, layout, weights_of
from diffusemble.memory.plan import Weights
from diffusemble.memory.visitors import layer_by_layer, own_weights

Blockwise = Mapping[str, tuple[Tensor, ...]]
"""Weights of every block, by its name in running order."""


def distinct(ensemble: EnsembleDenoiser) -> dict[int, int]:
    """Index of the first expert of every different denoiser, by the denoiser's ``id``."""
    found: dict[int, int] = {}
    for index, denoiser in enumerate(ensemble.denoisers):
        found.setdefault(id(denoiser), index)
    return found


def block_weights(ensemble: EnsembleDenoiser, expert: int) -> Blockwise:
    """What only one block of a denoiser uses.

    A weight of several blocks counts as outside, and so does the denoiser's first one: where that is, a pipeline takes
    the denoiser to be.
    """
    blocks, denoiser = ensemble.blocks[expert], ensemble.denoisers[expert]
    all_of = {name: weights_of(blocks.modules(name)) for name in blocks.names}
    uses = Counter(id(weight) for weights in all_of.values() for weight in weights)
    first = id(next(denoiser.parameters()))
    return {
        name: tuple(weight for weight in weights if uses[id(weight)] == 1 and id(weight) != first)
        for name, weights in all_of.items()
    }


def outside_weights(ensemble: EnsembleDenoiser, expert: int) -> tuple[Tensor, ...]:
    """What no block of a denoiser has for itself: embeddings, norms, the last convolution."""
    taken = {id(weight) for weights in block_weights(ensemble, expert).values() for weight in weights}
    return tuple(weight for weight in weights_of([ensemble.denoisers[expert]]) if id(weight) not in taken)


def encoders_of(ensemble: EnsembleDenoiser) -> tuple[nn.Module, ...]:
    """Every expert's text encoders, and the first expert's other networks but the VAE; shared ones once."""
    found: dict[int, nn.Module] = {}
    for number, expert in enumerate(ensemble.experts):
        for name, part in expert.components.items():
            if isinstance(part, nn.Module) and name != "vae" and (number == 0 or name.startswith("text_encoder")):
                found.setdefault(id(part), part)
    return tuple(found.values())


def vae_of(ensemble: EnsembleDenoiser) -> nn.Module | None:
    """The VAE that decodes: the first expert's."""
    vae: nn.Module | None = ensemble.experts[0].components.get("vae")
    return vae


def measure_weights(ensemble: EnsembleDenoiser, storage: str = "same") -> Weights:
    """Sizes of an ensemble for a plan, its blocks stored as ``storage``.

    Raises:
        ValueError: something of it is quantised, so that its weights are no plain numbers.
    """
    _refuse_quantised(ensemble)
    blocks, decoded, outside = [], 0, bytes_of(weights_of([ensemble.aggregator]))
    for expert in distinct(ensemble).values():
        layouts = [layout(weights, storage) for weights in block_weights(ensemble, expert).values()]
        blocks.append(tuple(one.bytes for one in layouts))
        decoded = max(decoded, *(one.decoded for one in layouts))
        outside += bytes_of(outside_weights(ensemble, expert))
    encoders = encoders_of(ensemble)
    return Weights(
        blocks=tuple(blocks),
        decoded=decoded,
        outside=outside,
        encoders=tuple(bytes_of(weights_of([encoder])) for encoder in encoders),
        layers=tuple(max(bytes_of(own_weights(group)) for group in layer_by_layer(encoder)) for encoder in encoders),
        vae=_vae_bytes(ensemble),
    )


def _refuse_quantised(ensemble: EnsembleDenoiser) -> None:
    for module in (*ensemble.denoisers, *encoders_of(ensemble)):
        for name, weight in module.named_parameters():
            if type(weight) is not nn.Parameter or type(weight.data) is not Tensor:
                kind = type(weight.data if type(weight) is nn.Parameter else weight).__name__
                raise ValueError(
                    f"A memory plan moves plain weights, but {name} of a {type(module).__name__} is quantised "
                    f"({kind}). Draw without a plan, or load it unquantised and let the plan store it in eight bits "
                    f"(memory.storage: int8)."
                )


def _vae_bytes(ensemble: EnsembleDenoiser) -> int:
    vae = vae_of(ensemble)
    if vae is None:
        return 0
    weights = weights_of([vae])
    return bytes_of(weights) * decoding_type(ensemble).itemsize // weights[0].element_size()


def decoding_type(ensemble: EnsembleDenoiser) -> torch.dtype:
    """Number type in which the VAE decodes: SDXL's pipelines widen one that overflows in half precision."""
    vae = vae_of(ensemble)
    if vae is None:
        return ensemble.dtype
    own, kind = next(vae.parameters()).dtype, ensemble.experts[0].pipeline_class
    widens = bool(getattr(vae.config, "force_upcast", False)) and (kind is None or hasattr(kind, "upcast_vae"))
    return torch.float32 if own == torch.float16 and widens else own
