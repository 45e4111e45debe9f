"""An ensemble's weights where a plan wants them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.memory.bundle import Bundle, bytes_of, weights_of
from diffusemble.memory.conveyor import Conveyor
from diffusemble.memory.measure import block_weights, distinct, encoders_of, outside_weights, vae_of
from diffusemble.memory.plan import Plan
from diffusemble.memory.residence import Residence, give_back_free_memory
from diffusemble.memory.slices import sliced_attention, sliced_decoding
from diffusemble.memory.staging import Scene, StagedBlocks, followers, scenes
from diffusemble.memory.visitors import Visitors, layer_by_layer, whole

HOST = torch.device("cpu")


class Placement:
    """An ensemble whose weights are where ``plan`` wants them, until ``release`` (or the end of a ``with``).

    It draws what it draws with everything in memory, bit for bit if ``plan.exact``. Weights come and go by the calls of
    its blocks and encoders; no ``forward`` is replaced. While it is placed nothing may be attached to its experts.

    Args:
        ensemble: what draws; its pipeline may exist already.
        plan: made for it (``choose_plan``).
        device: where everything computes.

    Attributes:
        residence: counts the weights on the device.

    Raises:
        ValueError: the plan was made for another number of denoisers, or asks for what the models cannot do.
    """

    def __init__(self, ensemble: EnsembleDenoiser, plan: Plan, device: str | torch.device) -> None:
        self.ensemble, self.plan, self.device = ensemble, plan, torch.device(device)
        if plan.experts != len(distinct(ensemble)):
            raise ValueError(
                f"This plan was made for {plan.experts} different denoisers; the ensemble has "
                f"{len(distinct(ensemble))}. Make one for this ensemble: choose_plan(ensemble, ...)."
            )
        self.switches = self._switch()
        self.origin = ensemble.device
        self.host = self.origin if self.origin.type == "meta" else HOST
        self.residence = Residence(self.device)
        self.bundles: dict[tuple[int, str], Scene] = {}
        self.handles: list[RemovableHandle] = []
        self.staged: list[tuple[EnsembleDenoiser, Any]] = []
        self._stay(weights_of([ensemble.aggregator]))
        for number, expert in enumerate(distinct(ensemble).values()):
            self._place_denoiser(expert, stays=number < plan.resident)
        passing = [scene.bundle.bytes for scene in self.bundles.values() if not scene.stays]
        decoded = max((scene.bundle.decoded_bytes for scene in self.bundles.values()), default=0)
        self.conveyor = Conveyor(self.residence, max(passing, default=0), decoded)
        self.visitors = self._place_parts()
        self.adopt(ensemble)

    def adopt(self, ensemble: EnsembleDenoiser) -> None:
        """Let another ensemble of the same experts (one expert alone, another aggregator) use the same placement."""
        if ensemble is not self.ensemble:
            self._stay(weights_of([ensemble.aggregator]))
        order = followers(ensemble.aggregator, ensemble.points, len(ensemble.blocks))
        table = scenes(list(ensemble.denoisers), self.bundles, order)
        self.staged.append((ensemble, ensemble.blocks))
        ensemble.blocks = tuple(
            StagedBlocks(blocks, self.conveyor, needed) for blocks, needed in zip(ensemble.blocks, table, strict=True)
        )
        known = {id(weight) for weight in weights_of([ensemble])}
        self.handles.append(ensemble.register_forward_pre_hook(lambda *_: self._begin(ensemble, known)))

    def release(self) -> None:
        """Put everything back where it was; eight-bit weights stay rounded."""
        self.switches.close()
        for handle in self.handles:
            handle.remove()
        for ensemble, blocks in self.staged:
            ensemble.blocks = blocks
        if self.visitors is not None:
            self.visitors.remove()
        self.conveyor.stop()
        for scene in self.bundles.values():
            scene.bundle.unpack(self.origin)
        self.bundles, self.handles, self.staged = {}, [], []
        modules: list[nn.Module] = [self.ensemble, *encoders_of(self.ensemble), *_there(vae_of(self.ensemble))]
        for module in modules:
            _move(weights_of([module]), self.origin)

    def __enter__(self) -> Placement:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.release()

    # -- parts of the above ----------------------------------------------------------------------------------------

    def _place_denoiser(self, expert: int, stays: bool) -> None:
        coded = self.plan.storage != "same"
        key = id(self.ensemble.denoisers[expert])
        self._stay(outside_weights(self.ensemble, expert))
        for name, weights in block_weights(self.ensemble, expert).items():
            if not weights:
                continue
            if stays and not coded:
                self._stay(weights)
                continue
            bundle = Bundle(weights, self.plan.storage, self.residence.take if stays else self._room)
            if not stays or bundle.decoded_bytes:
                self.bundles[key, name] = Scene(bundle, stays)
        give_back_free_memory()

    def _place_parts(self) -> Visitors | None:
        encoders, vae = encoders_of(self.ensemble), _there(vae_of(self.ensemble))
        if self.plan.parts == "stay":
            for part in (*encoders, *vae):
                self._stay(weights_of([part]))
            return None
        split = layer_by_layer if self.plan.parts == "layers" else whole
        groups = [group for encoder in encoders for group in split(encoder)]
        groups += [group for part in vae for group in whole(part)]
        for group in groups:
            _move(weights_of(group), self.host)
        return Visitors(self.residence, groups, before=self.conveyor.stop)

    def _switch(self) -> ExitStack:
        with ExitStack() as switches:
            for expert in distinct(self.ensemble).values():
                switches.enter_context(sliced_attention(self.ensemble.denoisers[expert], self.plan))
            for vae in _there(vae_of(self.ensemble)):
                switches.enter_context(sliced_decoding(vae, self.plan))
            return switches.pop_all()

    def _stay(self, weights: Iterable[Tensor]) -> None:
        weights = tuple(weights)
        _move(weights, self.device)
        self.residence.add(bytes_of(weights))

    def _room(self, size: int) -> Tensor:
        pinned = self.device.type == "cuda"
        return torch.empty(size, dtype=torch.uint8, device=self.host, pin_memory=pinned)

    def _begin(self, ensemble: EnsembleDenoiser, known: set[int]) -> None:
        if self.visitors is not None:
            self.visitors.leave()
        added = [name for name, weight in ensemble.named_parameters() if id(weight) not in known]
        if added:
            raise ValueError(
                f"Nothing may be attached to an ensemble while a memory plan holds its weights; {len(added)} weights "
                f"came after it was placed, such as {added[0]}. Attach adapters first, then place the ensemble."
            )


def _there(module: nn.Module | None) -> list[nn.Module]:
    return [] if module is None else [module]


def _move(weights: Iterable[Tensor], device: torch.device) -> None:
    for weight in weights:
        if weight.device != device:
            weight.data = weight.data.to(device)
