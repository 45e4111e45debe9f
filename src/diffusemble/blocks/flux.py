"""Block schedule of diffusers' ``FluxTransformer2DModel``: double-stream blocks, then single-stream blocks.

It calls the model's own blocks in the order of its ``forward`` and owns no weights. Latents come packed, a 2 x 2 patch
a token; ``img_ids`` says where each lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers import FluxTransformer2DModel
from torch import Tensor, cat

from diffusemble.aggregators.base import Sizes
from diffusemble.blocks.base import Call, Flow, Inputs
from diffusemble.blocks.streams import (
    IMAGES,
    Constants,
    Grid,
    StreamBlocks,
    check_residuals,
    on_grid,
    rows,
    spread_residuals,
)

_RESIDUALS = {
    "controlnet_block_samples": "double",
    "controlnet_single_block_samples": "single",
}
ADDED = ("joint_attention_kwargs", *_RESIDUALS, "controlnet_blocks_repeat")


class FluxBlocks(StreamBlocks):
    """A ``FluxTransformer2DModel`` as a schedule of its blocks (57 in FLUX.1).

    ``Flow.time`` is the time embedding with pooled text and guidance in it, ``Flow.text`` the text after
    ``context_embedder``; both are as wide as the image tokens.
    """

    time_unit = 1000.0
    family = "FLUX"
    needed: tuple[str, ...] = ("encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids")
    optional: tuple[str, ...] = ("guidance", *ADDED)
    known_kwargs: tuple[str, ...] = ("scale", IMAGES, "attention_mask")
    packed: ClassVar[Mapping[str, str]] = {**StreamBlocks.packed, "pooled_projections": "pooled_projection_dim"}
    image_projection = "encoder_hid_proj"

    def __init__(self, denoiser: FluxTransformer2DModel) -> None:
        inner = denoiser.inner_dim
        sizes = Sizes(
            channels=(inner, denoiser.proj_out.out_features),
            time=inner,
            text=inner,
            latents=denoiser.config.in_channels,
        )
        stacks = {"transformer_blocks": "double", "single_transformer_blocks": "single"}
        super().__init__(denoiser, stacks, sizes)

    def read(self, arguments: Inputs) -> Call:
        """The call that ``FluxTransformer2DModel.forward`` gets, its latents on the grid of ``img_ids``.

        Raises:
            ValueError: there are no ``img_ids``, or they are not one grid.
        """
        inputs = dict(arguments)
        latents = inputs.pop("hidden_states")
        return Call(on_grid(latents, _grid(inputs.get("img_ids"), latents.shape[1])), inputs.pop("timestep"), inputs)

    def split(self, inputs: Inputs, n: int) -> tuple[dict[str, Any], ...]:
        """Cut the packed text, the pooled text and the text positions.

        Raises:
            ValueError: something of it is missing, or not packed for n experts.
        """
        own = super().split(inputs, n)
        ids, length = _flat(inputs["txt_ids"]), own[0]["encoder_hidden_states"].shape[1]
        if len(ids) not in (length, n * length):
            raise ValueError(
                f"txt_ids has {len(ids)} rows, but every one of the {n} experts reads {length} tokens. Give {length} "
                f"rows for all, or {n * length}, packed as the text is."
            )
        for mine, part in zip(own, ids.split(length) if len(ids) > length else [ids] * n, strict=True):
            mine["txt_ids"] = part
        return own

    def write(self, prediction: Tensor) -> Any:
        """The record of ``FluxTransformer2DModel.forward``: the prediction packed, as the latents were."""
        return super().write(rows(prediction))

    def open(self, sample: Tensor, timestep: Any, inputs: Inputs) -> Flow:
        """Embed latents, text, time and positions.

        Raises:
            ValueError: an argument that the schedule does not know, that is missing, or that changes nothing.
        """
        model, given = self.denoiser, self._taken(inputs)
        check_guidance(model, given)
        image = model.x_embedder(rows(sample))
        scaled = [timestep] + ([given["guidance"]] if "guidance" in given else [])
        time = model.time_text_embed(*(value.to(image.dtype) * 1000 for value in scaled), given["pooled_projections"])
        text = model.context_embedder(given["encoder_hidden_states"])
        attention = self._attention(given, timestep)
        extra = Constants((self._positions(given), attention), self._residuals(given, image.shape[1]))
        return Flow(on_grid(image, (sample.shape[2], sample.shape[3])), (), time, text, extra, text)

    def _positions(self, given: dict[str, Any]) -> Any:
        return self.denoiser.pos_embed(cat((_flat(given["txt_ids"]), _flat(given["img_ids"]))))

    def _residuals(self, given: dict[str, Any], length: int) -> dict[str, Tensor]:
        placed: dict[str, Tensor] = {}
        for argument, stack in _RESIDUALS.items():
            samples = given.get(argument)
            if samples is None:
                continue
            names = [name for name in self.names if name.startswith(stack)]
            check_residuals(samples, len(names), length, argument)
            cycle = stack == "double" and given.get("controlnet_blocks_repeat", False)
            placed |= spread_residuals(samples, names, cycle)
        return placed


def _grid(ids: Tensor | None, length: int) -> Grid:
    """Height and width of the grid that positions (picture, row, column, ...) ``[l 3]`` describe, row by row."""
    if ids is None:
        raise ValueError(
            "FLUX needs img_ids, the place [l 3] of every image token (FLUX.2: [l 4]). Pass what the pipeline passes."
        )
    ids = _flat(ids)
    if len(ids) != length:
        raise ValueError(f"img_ids has {len(ids)} rows, but the latents have {length} tokens. Give one row per token.")
    width = int((ids[:, 1] == ids[0, 1]).cumprod(0).sum())
    whole = length % width == 0 and bool((ids[:, 0] == ids[0, 0]).all())
    places = ids.view(-1, width, ids.shape[1]) if whole else ids[None]
    if not whole or (places[:, :, 1] != places[:, :1, 1]).any() or (places[:, :, 2] != places[:1, :, 2]).any():
        raise ValueError(
            "img_ids is not the grid of one picture, row by row, so there is no map to weigh experts on. Give one row "
            "(picture, row, column) for each place; pictures beside the one that is drawn (FLUX.2, FLUX Kontext) are "
            "not supported."
        )
    return length // width, width


def _flat(ids: Tensor) -> Tensor:
    """Positions ``[l 3]``; older pipelines give every sample the same ones, ``[b l 3]``."""
    return ids[0] if ids.ndim == 3 else ids


def check_guidance(model: Any, given: Inputs) -> None:
    """Make sure that a guidance scale is given if, and only if, the transformer is told one.

    Raises:
        ValueError: it is missing, or would change nothing.
    """
    if model.config.guidance_embeds and "guidance" not in given:
        raise ValueError("This FLUX transformer has a guidance embedding: pass guidance [b], such as 3.5.")
    if not model.config.guidance_embeds and "guidance" in given:
        raise ValueError(
            "guidance was given, but this FLUX transformer has no guidance embedding, so it would change nothing. "
            "Leave it out."
        )
