"""What the modules of a model are called in LoRA and LyCORIS files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusemble.experts.checksums import DENOISERS
from diffusemble.experts.formats.adapters import TEXT, canonical
from diffusemble.experts.layouts.origin import Origin
from diffusemble.experts.layouts.parts import ORIGINAL

_DENOISER = (
    *("lora_unet_", "lora_transformer_", "lycoris_", "oft_unet_", "unet_", "transformer_", "diffusion_model_"),
    *("model_diffusion_model_", "base_model_model_", ""),
)
_T5_OF_FLUX = ("lora_te3_", "text_encoders_t5xxl_transformer_", "t5_")
_OLDER = (
    ("_q_proj", "_to_q"),
    ("_k_proj", "_to_k"),
    ("_v_proj", "_to_v"),
    ("_out_proj", "_to_out"),
    ("_to_out_0", "_to_out"),
)


@dataclass(frozen=True)
class Target:
    """The weight that a file means by a name: one of the model's, or several that are one in the original code.

    Attributes:
        part: of the pipeline.
        pieces: paths of the modules, and how each lies in the whole, in the order of their rows.
    """

    part: str
    pieces: tuple[tuple[str, Origin], ...]

    def read(self, model: nn.Module, name: str = "weight") -> Tensor:
        """The whole ``weight`` or ``bias``, as the original code has it."""
        found = [_tensor(model, f"{path}.{name}").detach().float() for path, _ in self.pieces]
        whole = torch.cat(found) if len(found) > 1 else found[0]
        return torch.cat(whole.chunk(2)[::-1]) if self.pieces[0][1].swapped else whole

    def write(self, model: nn.Module, whole: Tensor, name: str = "weight") -> None:
        """Put it back into the model, in the model's number type."""
        for path, origin in self.pieces:
            own = _tensor(model, f"{path}.{name}")
            own.data = origin.take(whole, own.shape).to(own.device, own.dtype).contiguous()


def targets(parts: Mapping[str, Any]) -> dict[str, Target]:
    """Every name that a file may use for a weight of these parts, in one spelling."""
    found: dict[str, Target] = {}
    for part, model in parts.items():
        if part in DENOISERS:
            for path, target in _of_denoiser(part, model):
                found |= {prefix + name: target for name in _spellings(path) for prefix in _DENOISER}
        elif part in TEXT and isinstance(model, nn.Module):
            for path, target in _own(part, model):
                bare = canonical(path).removeprefix("text_model_")
                names = [name for full in (bare, f"text_model_{bare}") for name in _spellings(full)]
                found |= {prefix + name: target for name in names for prefix in _prefixes(part, model)}
    return found


def _of_denoiser(part: str, model: Any) -> Iterator[tuple[str, Target]]:
    yield from _own(part, model)
    layout = ORIGINAL.get(type(model).__name__)
    if layout is None:
        return
    wholes: dict[str, list[tuple[str, Origin]]] = {}
    for name, origin in layout(model, {name: tensor.shape for name, tensor in model.state_dict().items()}).items():
        if name.endswith(".weight"):
            wholes.setdefault(re.sub(r"\.(?:weight|scale)$", "", origin.key), []).append(
                (name[: -len(".weight")], origin)
            )
    for key, pieces in wholes.items():
        ordered = sorted(pieces, key=lambda piece: piece[1].place)
        yield key, Target(part, tuple(ordered))
        if len(ordered) > 1:  # OneTrainer numbers what is one tensor in the original code
            for place, (path, _) in enumerate(ordered):
                yield f"{key}.{place}", Target(part, ((path, Origin(f"{path}.weight")),))


def _own(part: str, model: nn.Module) -> Iterator[tuple[str, Target]]:
    for path, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), Tensor):
            yield path, Target(part, ((path, Origin(f"{path}.weight")),))


def _spellings(path: str) -> list[str]:
    name = canonical(path)
    return [name, *(name.removesuffix(end) + other for end, other in _OLDER if name.endswith(end))]


def _prefixes(part: str, model: nn.Module) -> tuple[str, ...]:
    t5 = getattr(getattr(model, "config", None), "model_type", "") == "t5"
    return (*TEXT[part], *_T5_OF_FLUX) if t5 and part != "text_encoder_3" else TEXT[part]


def _tensor(model: nn.Module, path: str) -> Tensor:
    where, _, name = path.rpartition(".")
    tensor: Tensor | None = getattr(model.get_submodule(where), name)
    if tensor is None:
        raise ValueError(f"{where} has no {name}")
    return tensor
