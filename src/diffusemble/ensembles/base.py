"""What every ensemble is: frozen experts and an aggregator, in the place of one denoiser."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from diffusemble.aggregators.base import Combiner, Sizes
from diffusemble.aggregators.storage import create
from diffusemble.blocks.base import Blocks
from diffusemble.blocks.points import point_indices
from diffusemble.ensembles.switches import Switches
from diffusemble.experts.expert import Expert, as_experts
from diffusemble.experts.reference import load_ensemble, save_ensemble
from diffusemble.registry import AGGREGATORS, lookup

E = TypeVar("E", bound="Ensemble")


class Ensemble(Switches):
    """Frozen denoisers that draw as one: an aggregator makes one of what they say.

    Args:
        experts: experts or bare diffusers denoisers, in the order of the aggregator's maps.
        aggregator: the part that is trained, built for these experts, or the name of a new one.

    Raises:
        ValueError: the experts cannot be combined, or the aggregator was built for others.
    """

    aggregator: Combiner
    blocks: list[Blocks]

    def __init__(self, experts: Sequence[Expert | nn.Module], aggregator: Combiner | str = "mean") -> None:
        super().__init__()
        self.experts = as_experts(experts)
        self.denoisers = nn.ModuleList(expert.denoiser for expert in self.experts)
        self.denoisers.requires_grad_(False)
        self._signature = inspect.signature(type(self.denoisers[0]).forward)
        self._prepare()
        self.aggregator = create(aggregator, self.sizes, {}) if isinstance(aggregator, str) else aggregator
        self._check()

    @abstractmethod
    def _prepare(self) -> None:
        """Make sure that the experts can be combined, and read off them what that needs."""

    @property
    @abstractmethod
    def sizes(self) -> Sizes:
        """What an aggregator for these experts must be built for."""

    @property
    @abstractmethod
    def points(self) -> tuple[str, ...]:
        """Names of the aggregation points in running order."""

    @abstractmethod
    def reading(self, text: Any) -> Ensemble:
        """The same ensemble, modules and all, for a pipeline that packs its text like this."""

    @abstractmethod
    def pipeline(self, cls: type | None = None, **components: Any) -> Any:
        """A ready diffusers pipeline around the ensemble; ``components`` add or replace parts of ``cls``."""

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
    def in_channels(self) -> int:
        """Channels of the latents, where Z-Image's pipelines read them."""
        return int(self.denoisers[0].config.in_channels)

    def train(self: E, mode: bool = True) -> E:
        """Set the aggregator's mode; the frozen experts stay in evaluation mode."""
        super().train(mode)
        self.denoisers.eval()
        return self

    @contextmanager
    def cache_context(self, name: str, **place: Any) -> Iterator[None]:
        """Where pipelines tell the experts' caches which call follows (``"cond"``, ``"uncond"``), and at which step."""
        with ExitStack() as stack:
            for denoiser in self.members:
                if hasattr(denoiser, "cache_context"):
                    stack.enter_context(denoiser.cache_context(name, **place))
            yield

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the aggregator's weights, and references with SHA-256 to the experts, which stay where they are."""
        save_ensemble(folder, self.experts, self.aggregator)

    @classmethod
    def from_pretrained(cls: type[E], folder: str | Path, **load_options: Any) -> E:
        """Read what ``save_pretrained`` wrote: load the experts from their sources, check their hashes, and install
        the aggregator. ``load_options`` are those of ``load_ensemble``: ``sources``, ``dtype``, ``device``.

        Raises:
            ValueError: an expert's file is missing or has changed; the message names it.
        """
        return cls(*load_ensemble(folder, **load_options))

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of ``forward`` by the names of the first denoiser's own."""
        arguments = dict(self._signature.bind(self, *args, **kwargs).arguments)
        del arguments["self"]
        return arguments

    def _check(self) -> None:
        if not self.aggregator.fits(self.sizes):
            raise ValueError(
                f"This aggregator was built for {self.aggregator.sizes}, but the experts need {self.sizes}. Build one "
                f"for exactly these experts (build_aggregator, or build_output_aggregator where they meet at the "
                f"output), or train one (`diffusemble train`)."
            )


def build(name: str, sizes: Sizes, points: Sequence[str], options: Mapping[str, Any]) -> Combiner:
    """Aggregator or router ``name`` of these sizes, whose option ``points`` may also name some of ``points``."""
    given = dict(options)
    if "points" in given:
        anchor = lookup(AGGREGATORS, name, "aggregator").anchor
        given["points"] = point_indices(given["points"], points, anchor)
    return create(name, sizes, given)
