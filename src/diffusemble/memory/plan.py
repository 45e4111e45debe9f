"""Which plan fits: a pure function of sizes in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from diffusemble.config.memory import MemoryConfig
from diffusemble.config.units import format_bytes
from diffusemble.memory.spread import Spread, copied, running_order, spread, spreads

BUFFERS = 2
"""Of passing blocks: one holds what computes, the other what comes next."""

PARTS = ("stay", "visit", "layers")
"""Where text encoders and VAE are: there all the time; there while they are called; text encoders layer by layer."""

CONTROLS = ("stay", "visit")
"""Where ControlNets are: there all the time; there while they are called, in every step."""

VAE = ("whole", "pictures", "tiles")
"""How the VAE decodes: all pictures at once, one by one, tile by tile."""


@dataclass(frozen=True)
class Weights:
    """Bytes of the weights of a drawing, as they are stored.

    Attributes:
        blocks: of every block of every denoiser, ``[n][k]``; a denoiser that stands for several experts counts once.
        decoded: the largest block as it computes, where that needs a place of its own.
        outside: aggregator, and what lies outside the denoisers' blocks.
        encoders: every text encoder, and image encoders and checkers.
        layers: the largest of their layers, one number for each.
        vaes: in the number type in which they decode.
        controls: every ControlNet.
        lockstep: every denoiser runs a block before anybody runs the next one; else one denoiser runs after the other.
        whole: denoisers are one block each.
        order: the denoiser of every expert, in order; one after the other by default.
    """

    blocks: tuple[tuple[int, ...], ...]
    decoded: int = 0
    outside: int = 0
    encoders: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()
    vaes: tuple[int, ...] = ()
    controls: tuple[int, ...] = ()
    lockstep: bool = True
    whole: bool = False
    order: tuple[int, ...] = ()


@dataclass(frozen=True)
class Working:
    """Bytes that a stage needs beside the weights: activations, and what kernels want for themselves.

    Attributes:
        encode: reading the prompts.
        denoise: one pass of ControlNets and ensemble, both halves of guidance in one batch.
        decode: the VAE, by the names of ``VAE``.
    """

    encode: int = 0
    denoise: int = 0
    decode: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Stage:
    """One of the three stages of a drawing: bytes of weights on the compute device, and of working memory."""

    weights: int
    working: int

    @property
    def bytes(self) -> int:
        """Both."""
        return self.weights + self.working


@dataclass(frozen=True)
class Plan:
    """Where an ensemble's weights are while it draws.

    Attributes:
        stays: which blocks of every denoiser stay on the compute device, ``[n][k]``; the others pass through two
            buffers, or come whole.
        resident: as how many denoisers that is, by their weights.
        travels: bytes that are copied in every step if every expert runs once: blocks, and ControlNets that visit.
        whole: whether denoisers run whole.
        parts: one of ``PARTS``.
        controls: one of ``CONTROLS``; None without ControlNets.
        vae: one of ``VAE``.
        storage: ``"same"``, or eight bits: ``"float8"``, ``"int8"``.
        sliced: whether attention is computed in slices.
        encode, denoise, decode: what each stage needs.
    """

    stays: tuple[tuple[bool, ...], ...]
    resident: float
    travels: int
    whole: bool
    parts: str
    controls: str | None
    vae: str
    storage: str
    sliced: bool
    encode: Stage
    denoise: Stage
    decode: Stage

    @property
    def experts(self) -> int:
        """Number n of different denoisers."""
        return len(self.stays)

    @property
    def peak(self) -> int:
        """Most bytes at once, estimated."""
        return max(stage.bytes for stage in (self.encode, self.denoise, self.decode))

    @property
    def weights(self) -> int:
        """Most bytes of weights at once; counted exactly."""
        return max(stage.weights for stage in (self.encode, self.denoise, self.decode))

    @property
    def exact(self) -> bool:
        """Whether pictures are bit for bit those of everything in memory: no rounded weights, no blended tiles, and
        kernels that see the same batches.
        """
        return self.storage == "same" and self.vae == "whole" and not self.sliced

    def __str__(self) -> str:
        how = "the others come whole when they are called" if self.whole else "other blocks pass through two buffers"
        parts = {"stay": "stay, too", "visit": "come when they are called", "layers": "come layer by layer"}
        said = [
            f"{self.resident:.3g} of {self.experts} denoisers stay on the device"
            + (f" ({self.resident / self.experts:.0%}), {how}" if self.resident < self.experts else ""),
            f"text encoders and VAE {parts[self.parts]}",
        ]
        said += [f"ControlNets {parts[self.controls]}"] if self.controls else []
        said += {"whole": [], "pictures": ["pictures are decoded one by one"], "tiles": ["decoded in tiles"]}[self.vae]
        said += [] if self.storage == "same" else [f"blocks are stored as {self.storage}"]
        said += ["attention is sliced"] if self.sliced else []
        said += [f"{format_bytes(self.travels)} travel in every step"] if self.travels else []
        said.append(f"estimated peak {format_bytes(self.peak)}, of it weights {format_bytes(self.weights)}")
        return "; ".join(said)


def plans(weights: Weights, working: Working, choice: MemoryConfig) -> Iterator[Plan]:
    """Every plan that ``choice`` allows: those that give the same bits first, and the fastest first among them.

    Slower than all else is to bring weights anew in every step, so the fewest bytes come first; text encoders and the
    VAE come once a picture. Decoding pictures one by one changes their last bits, tiles change what one can see.
    """
    blocks = weights.blocks, weights.lockstep
    ways = spreads(*blocks) if choice.resident is None else [spread(*blocks, choice.resident)]
    controls = CONTROLS if choice.controls is None and weights.controls else (choice.controls or "stay",)
    there = PARTS if choice.parts is None else (choice.parts,)
    moves = [(way, control, _travels(weights, way, control)) for way, control in product(ways, controls)]
    for vae in VAE if choice.vae is None else (choice.vae,):
        alike = []
        for (way, control, travels), parts in product(moves, there):
            chosen = choice.model_copy(update={"controls": control, "parts": parts, "vae": vae})
            alike.append(_plan(weights, working, chosen, way, travels))
        yield from sorted(alike, key=lambda plan: (plan.travels, PARTS.index(plan.parts)))


def make_plan(weights: Weights, working: Working, chosen: MemoryConfig) -> Plan:
    """What a plan needs; what ``chosen`` leaves out stays on the device and is decoded whole."""
    resident = len(weights.blocks) if chosen.resident is None else chosen.resident
    way = spread(weights.blocks, weights.lockstep, resident)
    return _plan(weights, working, chosen, way, _travels(weights, way, chosen.controls or "stay"))


def _travels(weights: Weights, way: Spread, controls: str) -> int:
    turns = running_order(weights.blocks, weights.order or range(len(weights.blocks)), weights.lockstep)
    visiting = sum(weights.controls) if controls == "visit" else 0
    # ControlNets that visit need the room of what the step before brought.
    return visiting + copied(way, weights.blocks, turns, _room(weights), afresh=visiting > 0)


def _room(weights: Weights) -> int:
    """How many blocks that pass are there at once: blocks are prefetched; what comes whole comes by itself."""
    return 1 if weights.whole else BUFFERS


def _plan(weights: Weights, working: Working, chosen: MemoryConfig, way: Spread, travels: int) -> Plan:
    parts, controls, vae = chosen.parts or "stay", chosen.controls or "stay", chosen.vae or "whole"
    coming = _room(weights) * way.largest
    base = weights.outside + weights.decoded + sum(map(sum, weights.blocks)) - way.passing
    visiting = max(weights.controls, default=0) if controls == "visit" else 0
    base += sum(weights.controls) if controls == "stay" else 0
    if parts == "stay":
        base += sum(weights.encoders) + sum(weights.vaes) + max(coming, visiting)  # nobody sends them away
        reading = decoding = coming = visiting = 0
    else:
        reading = max(weights.encoders if parts == "visit" else weights.layers, default=0)
        decoding = max(weights.vaes, default=0)
    return Plan(
        stays=way.stays,
        resident=way.resident,
        travels=travels,
        whole=weights.whole,
        parts=parts,
        controls=controls if weights.controls else None,
        vae=vae,
        storage=chosen.storage,
        sliced=chosen.attention_slicing,
        encode=Stage(base + reading, working.encode),
        denoise=Stage(base + max(coming, visiting), working.denoise),
        decode=Stage(base + decoding, working.decode[VAE.index(vae)]),
    )


def choose(weights: Weights, working: Working, choice: MemoryConfig, budget: int | None) -> Plan:
    """The first plan whose estimated peak fits into ``budget`` bytes; without one, the first of all.

    Raises:
        ValueError: none fits; the message says what the least is.
    """
    there = list(plans(weights, working, choice))
    for plan in there:
        if budget is None or plan.peak <= budget:
            return plan
    least = min(there, key=lambda plan: plan.peak)
    stages = ("reading the prompts", least.encode), ("denoising", least.denoise), ("decoding", least.decode)
    where, stage = max(stages, key=lambda pair: pair[1].bytes)
    raise ValueError(
        f"No plan fits into the memory budget of {format_bytes(budget or 0)}: the least that this drawing needs is "
        f"{format_bytes(least.peak, up=True)} ({where}: weights {format_bytes(stage.weights)}, working memory "
        f"{format_bytes(stage.working)}). Give more, draw smaller pictures (height, width) or fewer at a time (batch), "
        f"or take a narrower dtype."
    )
