"""Diffusers' caches on experts that run in lockstep.

A cache of single attentions works: every expert's attentions keep what is their own. One that skips whole blocks
cannot, because the experts meet after each block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from diffusemble.blocks.base import Blocks


def refuse_block_caches(experts: Sequence[Blocks]) -> None:
    """Make sure that no cache skips an expert's blocks, or waits for a call of the whole expert.

    Raises:
        ValueError: names the expert and the cache.
    """
    for number, blocks in enumerate(experts, start=1):
        own = (module for name in blocks.names for module in blocks.modules(name))
        for cache in (cache for module in (blocks.denoiser, *own) for cache in _caches(module)):
            raise ValueError(
                f"Expert {number} has a cache that skips whole blocks ({cache}), but block by block the experts meet "
                f"after each of them. Switch it off (ensemble.disable_cache()), and use one of single attentions, such "
                f"as PyramidAttentionBroadcastConfig or TaylorSeerCacheConfig; or combine what the experts predict "
                f"(OutputEnsembleDenoiser)."
            )


def _caches(module: nn.Module) -> list[str]:
    """Names of the caches that diffusers has put around a module itself."""
    hooks: dict[str, Any] = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
    return [name for name, hook in hooks.items() if hook._is_stateful]
