"""Which plan fits: a pure function of sizes in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from diffusemble.config.memory import MemoryConfig
from diffusemble.config.units import format_bytes

PARTS = ("stay", "visit", "layers")
"""Where text encoders and VAE are: there all the time; there while they are called; text encoders layer by layer."""

VAE = ("whole", "pictures", "tiles")
"""How the VAE decodes: all pictures at once, one by one, tile by tile."""


@dataclass(frozen=True)
class Weights:
    """Bytes of an ensemble's weights, as they are stored.

    Attributes:
        blocks: of every block of every denoiser, ``[n][k]``; a denoiser that stands for several experts counts once.
        decoded: the largest block as it computes, where that needs a place of its own.
        outside: aggregator, and what lies outside the denoisers' blocks.
        encoders: every text encoder, and image encoders and checkers.
        layers: the largest of their layers, one number for each.
        vae: in the number type in which it decodes.
    """

    blocks: tuple[tuple[int, ...], ...]
    decoded: int = 0
    outside: int = 0
    encoders: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()
    vae: int = 0


@dataclass(frozen=True)
class Working:
    """Bytes that a stage needs beside the weights: activations, and what kernels want for themselves.

    Attributes:
        encode: reading the prompts.
        denoise: one pass of the ensemble, both halves of guidance in one batch.
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
            through two buffers.
        parts: one of ``PARTS``.
        vae: one of ``VAE``.
        storage: ``"same"``, or eight bits: ``"float8"``, ``"int8"``.
        sliced: whether attention is computed in slices.
        encode, denoise, decode: what each stage needs.
    """

    experts: int
    resident: int
    parts: str
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
        parts = {"stay": "stay, too", "visit": "come when they are called", "layers": "come layer by layer"}
        said = [
            f"{self.resident} of {self.experts} denoisers stay on the device"
            + (f", the blocks of {away} pass through two buffers" if away else ""),
            f"text encoders and VAE {parts[self.parts]}",
        ]
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
    for vae, resident, parts in product(decoders, experts, ways):
        if parts != "stay" or resident == n or choice.parts is not None:
            fixed = choice.model_copy(update={"resident": resident, "parts": parts, "vae": vae})
            yield make_plan(weights, working, fixed)


def make_plan(weights: Weights, working: Working, chosen: MemoryConfig) -> Plan:
    """What a plan needs; what ``chosen`` leaves out stays on the device and is decoded whole."""
    n = len(weights.blocks)
    resident = n if chosen.resident is None else min(chosen.resident, n)
    parts, vae = chosen.parts or "stay", chosen.vae or "whole"
    passing = [size for blocks in weights.blocks[resident:] for size in blocks]
    buffers = 2 * max(passing, default=0)
    base = weights.outside + weights.decoded + sum(map(sum, weights.blocks[:resident]))
    if parts == "stay":
        base += sum(weights.encoders) + weights.vae + buffers
        reading = decoding = buffers = 0
    else:
        reading = max(weights.encoders if parts == "visit" else weights.layers, default=0)
        decoding = weights.vae
    return Plan(
        experts=n,
        resident=resident,
        parts=parts,
        vae=vae,
        storage=chosen.storage,
        sliced=chosen.attention_slicing,
        encode=Stage(base + reading, working.encode),
        denoise=Stage(base + buffers, working.denoise),
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
