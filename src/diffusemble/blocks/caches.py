"""What users and diffusers put around calls that an ensemble does not make: refused, for nothing would come of it.

A cache of single attentions works: every expert's attentions keep what is their own. One that skips whole blocks
cannot, because the experts meet after each block; and one put on the ensemble itself finds no block there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from diffusemble.blocks.base import Blocks


def refuse_block_caches(experts: Sequence[Blocks]) -> None:
    """Make sure that no cache skips an expert's blocks, and that nothing waits for a call that block level leaves out.

    Raises:
        ValueError: names the expert and the cache, or the module.
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
        for name, module in _left_out(blocks.denoiser):
            if module._forward_hooks or module._forward_pre_hooks or _has_other_forward(module):
                raise ValueError(
                    f"Expert {number} has a hook or a forward of its own around {name}, but block by block an ensemble "
                    f"calls the layers inside, so it would change nothing. Remove it, and put it on the layers (their "
                    f"resnets, attentions, transformer blocks) or on the ensemble; or combine what the experts predict "
                    f"(OutputEnsembleDenoiser)."
                )


def refuse_caches_of_the_whole(ensemble: nn.Module) -> None:
    """Make sure that no cache of diffusers was put on the ensemble in the place of its experts.

    Raises:
        ValueError: names the cache, and the way that works.
    """
    for cache in _caches(ensemble):
        raise ValueError(
            f"The ensemble itself has a cache ({cache}), which finds none of the blocks it is for: they belong to the "
            f"experts. Take it off (ensemble._diffusers_hook.remove_hook({cache!r})), and call "
            f"ensemble.enable_cache(config), which asks every expert."
        )


def _left_out(denoiser: Any) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose layers a schedule calls instead of themselves: the denoiser, and levels of a U-Net."""
    yield "its whole denoiser", denoiser
    for stack in ("down_blocks", "up_blocks"):
        for index, block in enumerate(getattr(denoiser, stack, ())):
            yield f"{stack}.{index}", block


def _has_other_forward(module: nn.Module) -> bool:
    # A hook of diffusers that has been removed leaves the class's own behind.
    return getattr(module.forward, "__func__", None) is not type(module).forward


def _caches(module: nn.Module) -> list[str]:
    """Names of the caches that diffusers has put around a module itself."""
    hooks: dict[str, Any] = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
    return [name for name, hook in hooks.items() if hook._is_stateful]
