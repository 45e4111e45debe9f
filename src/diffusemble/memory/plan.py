"""Which plan fits: a pure function of sizes in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from diffusemble.config.memory import MemoryConfig
from diffusemble.config.units import format_bytes

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
        whole: denoisers are one block each, and run one after the other.
    """

    blocks: tuple[tuple[int, ...], ...]
    decoded: int = 0
    outside: int = 0
    encoders: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()
    vaes: tuple[int, ...] = ()
    controls: tuple[int, ...] = ()
    whole: bool = False


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
        experts: number n of different denoisers.
        resident: how many of them, counted from the first, stay on the compute device; the blocks of the others pass
            through two buffers, or they come whole.
        whole: whether denoisers run whole.
        parts: one of ``PARTS``.
        controls: one of ``CONTROLS``; None without ControlNets.
        vae: one of ``VAE``.
        storage: ``"same"``, or eight bits: ``"float8"``, ``"int8"``.
        sliced: whether attention is computed in slices.
        encode, denoise, decode: what each stage needs.
    """

    experts: int
    resident: int
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
        away = self.experts - self.resident
        how = "come whole when they are called" if self.whole else "pass through two buffers"
        parts = {"stay": "stay, too", "visit": "come when they are called", "layers": "come layer by layer"}
        said = [
            f"{self.resident} of {self.experts} denoisers stay on the device"
            + (f", {'' if self.whole else 'the blocks of '}{away} {how}" if away else ""),
            f"text encoders and VAE {parts[self.parts]}",
        ]
        said += [f"ControlNets {parts[self.controls]}"] if self.controls else []
        said += {"whole": [], "pictures": ["pictures are decoded one by one"], "tiles": ["decoded in tiles"]}[self.vae]
        said += [] if self.storage == "same" else [f"blocks are stored as {self.storage}"]
        said += ["attention is sliced"] if self.sliced else []
        said.append(f"estimated peak {format_bytes(self.peak)}, of it weights {format_bytes(self.weights)}")
        return "; ".join(said)


def plans(weights: Weights, working: Working, choice: MemoryConfig) -> Iterator[Plan]:
    """Every plan that ``choice`` allows: those that give the same bits first, and the fastest first among them.

    Slower than all else is to bring weights anew in every step; text encoders and the VAE come once a picture.
    Decoding pictures one by one changes their last bits, tiles change what one can see.
    """
    n = len(weights.blocks)
    experts = range(n, -1, -1) if choice.resident is None else [min(choice.resident, n)]
    ways = PARTS if choice.parts is None else (choice.parts,)
    decoders = VAE if choice.vae is None else (choice.vae,)
    controls = CONTROLS if choice.controls is None and weights.controls else (choice.controls or "stay",)
    for vae, resident, control, parts in product(decoders, experts, controls, ways):
        everything = resident == n and control == "stay"
        if parts != "stay" or everything or choice.parts is not None:
            fixed = {"resident": resident, "parts": parts, "controls": control, "vae": vae}
            yield make_plan(weights, working, choice.model_copy(update=fixed))


def make_plan(weights: Weights, working: Working, chosen: MemoryConfig) -> Plan:
    """What a plan needs; what ``chosen`` leaves out stays on the device and is decoded whole."""
    n = len(weights.blocks)
    resident = n if chosen.resident is None else min(chosen.resident, n)
    parts, controls, vae = chosen.parts or "stay", chosen.controls or "stay", chosen.vae or "whole"
    passing = [size for blocks in weights.blocks[resident:] for size in blocks]
    # Blocks are prefetched; what comes whole comes by itself.
    coming = (1 if weights.whole else BUFFERS) * max(passing, default=0)
    base = weights.outside + weights.decoded + sum(map(sum, weights.blocks[:resident]))
    visiting = max(weights.controls, default=0) if controls == "visit" else 0
    base += sum(weights.controls) if controls == "stay" else 0
    if parts == "stay":
        base += sum(weights.encoders) + sum(weights.vaes) + max(coming, visiting)  # nobody sends them away
        reading = decoding = coming = visiting = 0
    else:
        reading = max(weights.encoders if parts == "visit" else weights.layers, default=0)
        decoding = max(weights.vaes, default=0)
    return Plan(
        experts=n,
        resident=resident,
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
        f"{format_bytes(least.peak)} ({where}: weights {format_bytes(stage.weights)}, working memory "
        f"{format_bytes(stage.working)}). Give more, draw smaller pictures (size) or fewer at a time (batch), or take "
        f"a narrower dtype."
    )
