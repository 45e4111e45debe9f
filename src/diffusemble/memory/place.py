"""The weights of a drawing where a plan wants them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffusemble.blocks.base import Blocks
from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.memory.bundle import Bundle, bytes_of, weights_of
from diffusemble.memory.company import Company, Drawers
from diffusemble.memory.conveyor import Conveyor
from diffusemble.memory.hold import held
from diffusemble.memory.measure import Denoiser, denoisers_of
from diffusemble.memory.moving import move, move_together
from diffusemble.memory.networks import networks_of
from diffusemble.memory.plan import Plan
from diffusemble.memory.residence import Residence, give_back_free_memory, give_back_pinned_memory
from diffusemble.memory.slices import sliced_attention, sliced_decoding
from diffusemble.memory.staging import Scene, StagedBlocks, followers, scenes
from diffusemble.memory.visitors import Visitors, computing_on, layer_by_layer, whole

HOST = torch.device("cpu")


class Placement:
    """An ensemble whose weights are where ``plan`` wants them, until ``release`` (or the end of a ``with``).

    It draws what it draws with everything in memory, bit for bit if ``plan.exact``. Weights come and go by the calls of
    its blocks, encoders and ControlNets; no ``forward`` is replaced. While it is placed nothing may be attached to its
    experts.

    Args:
        ensemble: what draws: an ensemble, or a company of denoisers.
        plan: made for it and its pipelines (``choose_plan``).
        device: where everything computes.
        pipelines: that draw with it, if they have ControlNets or image encoders, or are around some of its experts.
        residence: counts the weights on the device; that of another placement, if the two take turns.

    Raises:
        ValueError: the plan was made for another number of denoisers, or asks for what the models cannot do; or
            another placement holds some of the denoisers.
    """

    @torch.inference_mode(False)  # weights outlive the pass in which they are placed
    def __init__(
        self,
        ensemble: Drawers,
        plan: Plan,
        device: str | torch.device,
        pipelines: Sequence[Any] = (),
        residence: Residence | None = None,
    ) -> None:
        self.ensemble, self.plan, self.device = ensemble, plan, torch.device(device)
        self.denoisers = denoisers_of(ensemble)
        planned, there = [len(one) for one in plan.stays], [len(one.blocks) for one in self.denoisers]
        if planned != there:
            raise ValueError(
                f"This plan was made for {len(planned)} different denoisers with {sum(planned)} blocks; the ensemble "
                f"has {len(there)} with {sum(there)}. Make one for this ensemble: choose_plan(ensemble, ...)."
            )
        self.networks = networks_of(ensemble, pipelines)
        self.origin = ensemble.device
        self.host = self.origin if self.origin.type == "meta" else HOST
        self.residence = residence or Residence(self.device)
        self.first = next(ensemble.parameters())  # alone, for it may stay when all others step aside
        self.staying: dict[int, Tensor] = {}
        self.bundles: dict[tuple[int, str], Scene] = {}
        self.handles: list[RemovableHandle] = []
        self.staged: list[tuple[list[Blocks], list[Blocks]]] = []
        self.conveyor = Conveyor(self.residence, 0)
        self.visitors = Visitors(self.residence, [])
        self.switches = ExitStack()
        self.guests: list[nn.Module] = []  # denoisers that come whole
        self.others: list[Placement] = []
        self.here, self.counted = True, 0
        self.switches.enter_context(held(ensemble.members))
        try:
            self._switch()
            self._place()
            self.adopt(ensemble)
        except BaseException:
            self.release()
            raise

    @torch.inference_mode(False)
    def adopt(self, ensemble: Drawers) -> None:
        """Let another ensemble of the same experts (one expert alone, another aggregator) use the same placement."""
        self._stay(weights_of([ensemble.aggregator]))
        if isinstance(ensemble, EnsembleDenoiser):
            around = self.plan.controls != "visit"  # else the next step finds no buffers
            order = followers(ensemble.aggregator, ensemble.points, len(ensemble.blocks), around)
            table = scenes(list(ensemble.denoisers), self.bundles, order)
            self.staged.append((ensemble.blocks, list(ensemble.blocks)))
            ensemble.blocks[:] = [
                StagedBlocks(blocks, self.conveyor, needed)
                for blocks, needed in zip(ensemble.blocks, table, strict=True)
            ]
        known = {id(weight) for weight in weights_of([ensemble])}
        for called in ensemble.members if isinstance(ensemble, Company) else (ensemble,):
            self.handles.append(called.register_forward_pre_hook(lambda *_: self._begin(ensemble, known)))

    @torch.inference_mode(False)
    def step_aside(self) -> None:
        """Leave the device to another placement. The first weight stays: where that is, a pipeline computes."""
        self.visitors.leave()
        self.conveyor.close()
        if self.here:
            for scene in self.bundles.values():
                if scene.stays:
                    scene.bundle.move(self.host)
            move((weight for weight in self.staying.values() if weight is not self.first), self.host)
            self._count(bytes_of([self.first]))
            self.here = False

    @torch.inference_mode(False)
    def step_in(self) -> None:
        """Take the device back from the others."""
        if not self.here:
            for other in self.others:
                other.step_aside()
            move_together(self.staying.values(), self.device)
            for scene in self.bundles.values():
                if scene.stays:
                    scene.bundle.move(self.device)
            staying = sum(scene.bundle.bytes for scene in self.bundles.values() if scene.stays)
            self._count(staying + bytes_of(self.staying.values()))
            self.here = True

    @torch.inference_mode(False)
    def release(self) -> None:
        """Put everything back where it was; eight-bit weights stay rounded. Once more, if it was interrupted."""
        self.switches.close()
        for handle in self.handles:
            handle.remove()
        for blocks, before in reversed(self.staged):
            blocks[:] = before
        self.visitors.remove()
        self.conveyor.close()
        self._count(0)
        while self.bundles:
            key, scene = next(iter(self.bundles.items()))
            scene.bundle.unpack(self.origin)
            del self.bundles[key], scene  # not before: who is interrupted in between unpacks it again
            give_back_pinned_memory()  # else everything would be in the computer's memory twice
        parts = [*self.networks.encoders, *self.networks.controls, *self.networks.vaes]
        move([*self.staying.values(), *weights_of([self.ensemble, *parts])], self.origin)

    def __enter__(self) -> Placement:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.release()

    # -- parts of the above ----------------------------------------------------------------------------------------

    def _place(self) -> None:
        for denoiser, stays in zip(self.denoisers, self.plan.stays, strict=True):
            staying = [*denoiser.outside]
            if not self.plan.whole:
                staying += self._pack(denoiser, stays)
            elif all(stays):
                staying += weights_of([denoiser.module])
            else:
                self.guests.append(denoiser.module)
            self._stay(staying)
        passing = [scene.bundle.bytes for scene in self.bundles.values() if not scene.stays]
        decoded = max((scene.bundle.decoded_bytes for scene in self.bundles.values()), default=0)
        self.conveyor = Conveyor(self.residence, max(passing, default=0), decoded)
        self.visitors = self._invite()

    def _pack(self, denoiser: Denoiser, stays: Sequence[bool]) -> list[Tensor]:
        """Pack the blocks that pass or are coded; the weights of the others."""
        plain = list[Tensor]()
        for (name, weights), here in zip(denoiser.blocks.items(), stays, strict=True):
            if here and self.plan.storage == "same":
                plain += weights
            elif weights:
                bundle = Bundle(weights, self.plan.storage, None if here else self._room)
                self.bundles[id(denoiser.module), name] = Scene(bundle, here)
                bundle.rest()
                if here:
                    bundle.move(self.device)
                    self._count(self.counted + bundle.bytes)
        give_back_free_memory()
        return plain

    def _invite(self) -> Visitors:
        """Whoever comes only when called: ``guests``; text encoders, VAEs and ControlNets, if the plan says so."""
        networks, parts, groups = self.networks, self.plan.parts, list[list[nn.Module]]()
        split = layer_by_layer if parts == "layers" else whole
        staying = [*networks.encoders, *networks.vaes] if parts == "stay" else []
        if self.plan.controls == "stay":
            staying += networks.controls
            for module in nn.ModuleList(networks.controls).modules():  # whoever read the prompt is still there
                self.handles.append(module.register_forward_pre_hook(lambda *_: self.visitors.draw()))
        self._stay(weights_of(staying))
        if parts != "stay":
            groups += [group for encoder in networks.encoders for group in split(encoder)]
            groups += [group for vae in networks.vaes for group in whole(vae)]
            for network in (*networks.encoders, *networks.vaes):
                self.switches.enter_context(computing_on(network, self.device))
        if self.plan.controls == "visit":
            groups += [group for control in networks.controls for group in whole(control)]
        coming = weights_of([*self.guests, *(module for group in groups for module in group)])
        move((weight for weight in coming if id(weight) not in self.staying), self.host)
        return Visitors(self.residence, groups, self._make_room, self.staying.values(), self.guests)

    def _make_room(self) -> None:
        self.step_in()
        self.conveyor.stop()

    def _count(self, size: int) -> None:
        self.residence.add(size - self.counted)
        self.counted = size

    def _switch(self) -> None:
        for denoiser in self.ensemble.members:
            self.switches.enter_context(sliced_attention(denoiser, self.plan))
        for vae in self.networks.vaes:
            self.switches.enter_context(sliced_decoding(vae, self.plan))

    def _stay(self, weights: Iterable[Tensor]) -> None:
        coming = {id(weight): weight for weight in weights if id(weight) not in self.staying}
        self.staying |= coming
        move((weight for weight in coming.values() if weight is self.first), self.device)
        move_together((weight for weight in coming.values() if weight is not self.first), self.device)
        self._count(self.counted + bytes_of(coming.values()))

    def _room(self, size: int) -> Tensor:
        pinned = self.device.type == "cuda"
        return torch.empty(size, dtype=torch.uint8, device=self.host, pin_memory=pinned)

    def _begin(self, ensemble: Drawers, known: set[int]) -> None:
        self.step_in()
        self.visitors.draw()
        added = [name for name, weight in ensemble.named_parameters() if id(weight) not in known]
        if added:
            raise ValueError(
                f"Nothing may be attached to an ensemble while a memory plan holds its weights; {len(added)} weights "
                f"came after it was placed, such as {added[0]}. Attach adapters first, then place the ensemble."
            )
