"""What InteractDiffusion and GLIGEN share: tokens of a condition, and gated layers that look at them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers.models.attention import GatedSelfAttentionDense
from torch import Tensor, nn

from diffusemble.controls.attachment import per_picture
from diffusemble.controls.base import Call, Control
from diffusemble.controls.gated import Look, block_sizes, looking
from diffusemble.controls.gated_condition import HIDDEN, SLOTS, GatedCondition, GatedSizes, at_work
from diffusemble.controls.layouts import SD1_BLOCKS, SD1_HEADS, adapter_tensors, unet_file
from diffusemble.controls.storage import fill, read_control, write_control

if TYPE_CHECKING:
    from typing import Self

_KEPT = 16  # conditions whose tokens are kept


class GatedControl(Control):
    """Gated layers beside a U-Net, and the projection of their condition to tokens.

    A condition is one for all pictures, or a sequence with one for every prompt (or every picture), in which ``None``
    asks for nothing. The unconditional half of a guided call gets the tokens that mean "nothing here".

    Attributes:
        position_net: the projection; its weights and those of the layers have the published names.
    """

    Condition: ClassVar[type[GatedCondition]]

    def __init__(self, sizes: GatedSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.position_net = self._projection(sizes)
        for name, (width, heads) in sizes.blocks.items():
            _graft(self, f"{name}.fuser", GatedSelfAttentionDense(width, sizes.token, heads, width // heads))
        self._tokens_of: dict[tuple[int, ...], tuple[Any, Any, Tensor]] = {}

    @staticmethod
    @abstractmethod
    def _projection(sizes: GatedSizes) -> nn.Module:
        """A new projection."""

    @classmethod
    @abstractmethod
    def _projection_sizes(cls, weights: Mapping[str, Tensor]) -> dict[str, int]:
        """``text``, ``hidden`` and ``slots`` of published weights."""

    @property
    def capacity(self) -> int:
        """How many things, or relations, it can be told of at most."""
        return self.sizes.slots

    @property
    def _weight(self) -> Tensor:
        """One of the projection's weights, for its number type and device."""
        return next(self.position_net.parameters())

    @abstractmethod
    def project(self, conditions: Sequence[Any]) -> Tensor:
        """Tokens ``[k t d]`` of conditions; of ``None``, those that mean "nothing here"."""

    @classmethod
    def from_unet(cls, unet: nn.Module, text: int | None = None, hidden: int = HIDDEN, slots: int = SLOTS) -> Self:
        """An untrained control for a U-Net; its gates are closed, so it changes nothing.

        Args:
            unet: ``UNet2DConditionModel``.
            text: width of the phrases' embeddings; the U-Net's cross-attention width by default.
            hidden: width inside the projection.
            slots: how many things a condition may have.
        """
        token = int(unet.config.cross_attention_dim)  # type: ignore[union-attr, arg-type]
        return cls(GatedSizes(block_sizes(unet), token, text or token, hidden, slots))

    @classmethod
    def from_pretrained(cls, source: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Read weights in any published layout.

        Args:
            source: what ``save_pretrained`` wrote; a diffusers folder (the pipeline's or its ``unet``); or a
                ``.safetensors`` file: the U-Net of such a folder, its adapter alone, or either under the names of the
                original code, as converted from ``.pth``.
            dtype: number type of the weights, whatever the files hold.

        Raises:
            ValueError: there is no such file, it is a pickle or damaged, or tensors are missing, unknown or of other
                shapes; the message names them.
        """
        heads = SD1_HEADS
        if Path(source).is_dir():
            source, config = unet_file(source)
            heads = config.get("attention_head_dim", heads)  # diffusers' name for the number of heads
        weights, spec = read_control(source)
        if spec:
            cls._check_kind(spec, source)
            blocks = {name: (width, heads) for name, (width, heads) in spec["sizes"].pop("blocks").items()}
            sizes = GatedSizes(blocks, **spec["sizes"])
        else:
            weights = adapter_tensors(weights, source)
            sizes = cls._read_sizes(weights, heads, source)
        with torch.device("meta"):
            control = cls(sizes)
        control = control.to_empty(device="cpu").to(dtype)
        fill(control, weights, source)
        return control.eval()

    def save_pretrained(self, file: str | Path) -> None:
        """Write the adapter alone to one ``.safetensors`` file, with its sizes in the header."""
        write_control(self.state_dict(), file, {"control": self.key, "sizes": asdict(self.sizes)})

    @contextmanager
    def attached(self, unet: nn.Module, condition: Any, call: Call) -> Iterator[Mapping[str, Any]]:
        """As ``Control.attached``.

        Raises:
            ValueError: the condition is of another control, has more things than slots, or its number does not divide
                the pictures; or the U-Net has other blocks.
        """
        pictures = per_picture(condition, self.Condition, call)
        first = self._check(pictures)
        if first.scale == 0 or not at_work(call.progress, first.until):
            yield {}
            return
        layers = {name: self.get_submodule(f"{name}.fuser") for name in self.sizes.blocks}
        rows = [*([None] * len(pictures) if call.guided else []), *pictures]
        with looking(unet, Look(layers, self._tokens(rows), first.scale)) as kwargs:
            yield {"cross_attention_kwargs": kwargs}

    def _tokens(self, rows: list[Any]) -> Tensor:
        """Tokens for every row of the batch ``[b t d]``; equal rows are projected once."""
        different = {id(condition): condition for condition in rows}
        places = {name: place for place, name in enumerate(different)}
        tokens = self._remembered(list(different.values()))
        return tokens[torch.tensor([places[id(condition)] for condition in rows], device=tokens.device)]

    def _remembered(self, conditions: list[Any]) -> Tensor:
        """Tokens of conditions, computed once as long as the weights stay the same."""
        if torch.is_grad_enabled():
            return self.project(conditions)
        key = tuple(map(id, conditions))
        weights = [
            (p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version) for p in self.position_net.parameters()
        ]
        if key not in self._tokens_of or self._tokens_of[key][1] != weights:
            while len(self._tokens_of) >= _KEPT:
                self._tokens_of.pop(next(iter(self._tokens_of)))
            tokens = self.project(conditions).to(self._weight.dtype)  # whatever autocast made of them
            self._tokens_of[key] = (conditions, weights, tokens)
        return self._tokens_of[key][2]

    def _check(self, pictures: list[Any]) -> GatedCondition:
        given = [condition for condition in pictures if condition is not None]
        most = max(map(len, given), default=0)
        if most > self.sizes.slots:
            raise ValueError(
                f"This control has {self.sizes.slots} slots; the condition of {self.key!r} takes {most}. Leave some "
                f"out."
            )
        if len({(condition.scale, condition.until) for condition in given}) > 1:
            raise ValueError(f"The conditions of one call of {self.key!r} need the same scale and until.")
        return given[0] if given else GatedCondition()

    @classmethod
    def _check_kind(cls, spec: Mapping[str, Any], source: str | Path) -> None:
        kind = spec.get("control")
        if kind != cls.key:
            raise ValueError(
                f"{source} holds a control of the kind {kind!r}, not {cls.key!r}. Load it with its own class."
            )

    @classmethod
    def _read_sizes(cls, weights: Mapping[str, Tensor], heads: int, source: str | Path) -> GatedSizes:
        for key in (*(f"{block}.fuser.linear.weight" for block in SD1_BLOCKS), "position_net.linears.0.weight"):
            if key not in weights:
                raise ValueError(
                    f"{source} lacks {key}. A published adapter has gated layers for the sixteen blocks of Stable "
                    f"Diffusion 1.x, and a projection; download it again."
                )
        widths = {block: weights[f"{block}.fuser.linear.weight"].shape[0] for block in SD1_BLOCKS}
        token = weights[f"{SD1_BLOCKS[0]}.fuser.linear.weight"].shape[1]
        blocks = {block: (width, heads) for block, width in widths.items()}
        return GatedSizes(blocks, token, **cls._projection_sizes(weights))


def _graft(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where its dotted name says, so that its weights have the names that they have in a U-Net."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(last, module)
