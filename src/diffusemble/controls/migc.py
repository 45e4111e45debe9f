"""MIGC: instances with phrases and boxes (arXiv 2402.05408), for Stable Diffusion 1.x.

The published weights are for non-commercial research only; this code is written from the mathematics.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from diffusemble.controls.attachment import Processor, cross_attentions, per_picture, replaced, running_order
from diffusemble.controls.base import Call, Control
from diffusemble.controls.gated_condition import at_work
from diffusemble.controls.instances import MigcCondition, migc_condition
from diffusemble.controls.layouts import ldm_to_diffusers
from diffusemble.controls.migc_layers import LayerSizes, MigcLayer
from diffusemble.controls.migc_processors import FusedProcessor, MigcProcessor, Placed, place
from diffusemble.controls.storage import fill, read_control, write_control

__all__ = ["Migc", "MigcCondition", "migc_condition"]

LAYERS = ("mid_block", "up_blocks.1")  # where the published weights are
_BLOCK = re.compile(
    r"(?<![a-z])(?:input_blocks\.\d+\.\d+|middle_block\.\d+|output_blocks\.\d+\.\d+"
    r"|(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.attentions\.\d+)(?=\.)"
)
_TRANSFORMER = re.compile(r"transformer_blocks\.\d+")


class Migc(Control):
    """MIGC's modules at some cross-attentions of a U-Net.

    Args:
        layers: names of the cross-attentions, in running order, and sizes of their modules.
    """

    key: ClassVar[str] = "migc"
    layers: Any

    def __init__(self, layers: Mapping[str, LayerSizes]) -> None:
        super().__init__()
        self.names = tuple(layers)
        self.layers = nn.ModuleList(MigcLayer(sizes) for sizes in layers.values())

    @classmethod
    def from_unet(
        cls,
        unet: nn.Module,
        layers: Sequence[str] = LAYERS,
        slots: int = 30,
        hidden: int = 512,
        heads: int = 8,
        reduction: int = 16,
    ) -> Migc:
        """New modules for a U-Net, set to begin training with.

        Args:
            unet: ``UNet2DConditionModel`` of any width.
            layers: at which cross-attentions, by beginnings of their names (``up_blocks.1.attentions.2``).
            slots: two more than the most instances.
            hidden: width of the network that reads boxes.
            heads: of the modules' attentions; must divide the channels.
            reduction: how many times narrower than the channels the gate of channels is; smaller for narrow U-Nets.

        Raises:
            ValueError: no cross-attention has such a name, or the sizes do not fit its channels.
        """
        chosen: dict[str, LayerSizes] = {}
        for start in layers:
            found = [name for name in cross_attentions(unet) if f"{name}.".startswith(f"{start}.")]
            if not found:
                raise ValueError(
                    f"No cross-attention of the U-Net lies in {start!r}. It has: {', '.join(cross_attentions(unet))}."
                )
            for name in found:
                attention: Any = unet.get_submodule(name)
                widths = attention.to_q.in_features, attention.to_k.in_features
                chosen[name] = LayerSizes(*widths, heads, slots, hidden, reduction)
        made = cls({name: chosen[name] for name in sorted(chosen, key=running_order)})
        for layer in made.layers:
            layer.start()
        return made

    @classmethod
    def from_pretrained(cls, file: str | Path) -> Migc:
        """Weights of ``save_pretrained``, or the published ones as a ``.safetensors`` file.

        Raises:
            ValueError: the file is pickled, damaged, or holds something else.
        """
        weights, header = read_control(file)
        parts = _by_layer(weights, file)
        built = cls({name: _sizes(part, header.get("heads", 8), file) for name, part in parts.items()})
        tensors = {f"{at}.{key}": tensor for at, part in enumerate(parts.values()) for key, tensor in part.items()}
        fill(built.layers, tensors, file)
        return built.eval()

    def save_pretrained(self, file: str | Path) -> None:
        """Write one ``.safetensors`` file."""
        weights = {
            f"{name}.migc.{key}": tensor
            for name, layer in zip(self.names, self.layers, strict=True)
            for key, tensor in layer.state_dict().items()
        }
        write_control(weights, file, {"control": self.key, "heads": self.layers[0].sizes.heads})

    def attached(self, unet: nn.Module, condition: Any, call: Call) -> AbstractContextManager[Mapping[str, Any]]:
        """The U-Net with MIGC in the share of the schedule that the condition names.

        Args:
            unet: the U-Net that the weights fit.
            condition: a ``MigcCondition`` for all pictures, or one for every prompt; ``None`` leaves pictures alone.
            call: what the U-Net is called with.

        Raises:
            ValueError: weights, U-Net, condition and call do not fit each other.
        """
        conditions = per_picture(condition, MigcCondition, call)
        told = [one for one in conditions if one is not None and len(one.boxes)]
        shares = {(one.until, one.fuse_until) for one in told}
        if len(shares) > 1:
            raise ValueError(
                f"All pictures of one call have MIGC in the same share of the schedule; got (until, fuse_until) of "
                f"{sorted(shares)}. Draw pictures with different shares one after the other."
            )
        on, fused = (at_work(call.progress, share) for share in (shares or {(0.0, 0.0)}).pop())
        if not on and not fused:
            return replaced(unet, {})
        for one in told:
            self._check(one, call)
        return replaced(unet, self._processors(unet, place(conditions, call), on, fused))

    def _processors(self, unet: nn.Module, placed: Placed, on: bool, fused: bool) -> dict[str, Processor]:
        attentions = cross_attentions(unet)
        chosen: dict[str, Processor] = {}
        if fused:
            chosen = {name: FusedProcessor(placed, attention.processor) for name, attention in attentions.items()}
        for index, (name, layer) in enumerate(zip(self.names, self.layers, strict=True) if on else ()):
            attention = attentions.get(name)
            if attention is None or attention.to_q.in_features != layer.sizes.channels:
                raise ValueError(
                    f"MIGC's weights are for a cross-attention {name} of {layer.sizes.channels} channels, and the "
                    f"U-Net has none of this kind. Use the U-Net that the weights were trained for."
                )
            chosen[name] = MigcProcessor(layer, index, placed, attention.processor)
        return chosen

    @property
    def capacity(self) -> int:
        """How many instances it can be told of at most; two slots are for the background and the layout."""
        slots: int = self.layers[0].sizes.slots
        return slots - 2

    def _check(self, condition: MigcCondition, call: Call) -> None:
        sizes = self.layers[0].sizes
        slots = condition.slot_rows()
        if int(slots.max()) + 2 >= sizes.slots:
            raise ValueError(
                f"These weights of MIGC have {sizes.slots} slots, so at most {self.capacity} instances in slots from "
                f"0; got {slots.shape[-1]} instances, the last in slot {int(slots.max())}. Leave some out."
            )
        if len(slots) not in (1, len(self.layers)):
            raise ValueError(
                f"Slots are [n], or [{len(self.layers)} n] for this MIGC's layers; got {list(slots.shape)}."
            )
        if condition.text.shape[-1] != call.text.shape[-1] or condition.pooled.shape[-1] != sizes.context:
            raise ValueError(
                f"MIGC reads phrases as the U-Net reads prompts, {call.text.shape[-1]} wide, and pooled ones "
                f"{sizes.context} wide; got {condition.text.shape[-1]} and {condition.pooled.shape[-1]}. Encode them "
                f"with the U-Net's own pipeline."
            )


def _by_layer(weights: Mapping[str, Tensor], file: str | Path) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.items():
        block, inner, at = _BLOCK.search(key), _TRANSFORMER.search(key), key.rfind("migc.")
        if block is None or at < 0:
            continue
        name = block[0] if ".attentions." in block[0] else ldm_to_diffusers(block[0])
        name = f"{name}.{inner[0] if inner else 'transformer_blocks.0'}.attn2"
        parts.setdefault(name, {})[key[at + len("migc.") :]] = tensor
    if not parts:
        raise ValueError(
            f"{file} holds no weights of MIGC: none of its {len(weights)} tensors is called <block>.migc.<name>. Give "
            f"MIGC_SD14 as a .safetensors file, or what Migc.save_pretrained wrote."
        )
    return {name: parts[name] for name in sorted(parts, key=running_order)}


def _sizes(part: Mapping[str, Tensor], heads: int, file: str | Path) -> LayerSizes:
    try:
        channels, narrow = part["norm.weight"].shape[0], part["sac.cbam1.ChannelGate.mlp.1.weight"].shape[0]
        hidden, slots = part["pos_net.linears_position.0.weight"].shape[0], part["sac.cbam2.ChannelGate.mlp.1.bias"]
        return LayerSizes(channels, part["ea.to_k.weight"].shape[1], heads, len(slots), hidden, channels // narrow)
    except KeyError as error:
        raise ValueError(f"{file}: the tensor {error} is missing. Copy, download or convert the file again.") from error
