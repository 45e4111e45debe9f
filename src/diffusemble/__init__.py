"""Many diffusion models, one picture."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "EnsembleDenoiser": "diffusemble.ensembles.block_level",
    "build_aggregator": "diffusemble.ensembles.block_level",
    "OutputEnsembleDenoiser": "diffusemble.ensembles.output_level",
    "build_output_aggregator": "diffusemble.ensembles.output_level",
    "open_ensemble": "diffusemble.ensembles.assembly",
    "record_attention": "diffusemble.aggregators.recording",
    "Expert": "diffusemble.experts.expert",
    "load_experts": "diffusemble.experts.load",
    "pack_text": "diffusemble.blocks.packing",
    "unpack_text": "diffusemble.blocks.packing",
    "load_aggregator": "diffusemble.aggregators",
    "load_published": "diffusemble.aggregators",
    "GenerateConfig": "diffusemble.config.generate",
    "describe": "diffusemble.description",
    "generate": "diffusemble.generation",
    "guidance_interval": "diffusemble.adapters.guidance",
    "Member": "diffusemble.latent.aggregate",
    "aggregate": "diffusemble.latent.aggregate",
    "SceneConfig": "diffusemble.scene.config",
    "draw_scene": "diffusemble.scene.draw",
}

__all__ = sorted(_PUBLIC)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that ``import diffusemble`` stays instant."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'diffusemble' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
