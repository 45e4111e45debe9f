"""Block schedule of diffusers' ``ZImageTransformer2DModel``: Z-Image, which takes pictures and captions in lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from diffusemble.aggregators.base import Sizes
from diffusemble.blocks.base import Call, Feature, Flow, Inputs
from diffusemble.blocks.packing import check_width
from diffusemble.blocks.streams import Constants, StreamBlocks, grid_of, on_grid, rows

TEXT = "cap_feats"
_CONTROL = "controlnet_block_samples"
_PATCH, _FRAMES = 2, 1
_KIND = f"{_PATCH}-{_FRAMES}"  # by which the model names what is made for these patches


class ZImageBlocks(StreamBlocks):
    """A ``ZImageTransformer2DModel`` as a schedule of its single-stream layers (30 in Z-Image).

    Every caption ``[s d]`` has its own length; those of n experts lie side by side, ``[s n·d]`` (``pack_text``).
    The refiners of latents and captions belong to ``open``. Both sequences are filled up to multiples of 32 by learned
    tokens, which see and are seen; those of the picture go with the text. Points are on the grid of patches, the last
    one on that of the latents. ``Flow.text`` is the refined caption.

    Raises:
        ValueError: the transformer is one for editing, or has no patches of 2 x 2 latents.
    """

    time_unit, time_origin = -1000.0, 1000.0  # 0 is noise, 1 the picture
    family = "Z-Image"
    needed = (TEXT,)
    optional = (_CONTROL, "joint_attention_kwargs")
    known_kwargs = ("scale",)

    def __init__(self, denoiser: Any) -> None:
        refuse_editing(denoiser)
        time = denoiser.t_embedder.mlp[-1].out_features
        sizes = Sizes((denoiser.dim, denoiser.out_channels), time, denoiser.dim, latents=denoiser.in_channels)
        super().__init__(denoiser, {"layers": "single"}, sizes)

    def read(self, arguments: Inputs) -> Call:
        """The call that ``ZImageTransformer2DModel.forward`` gets, its pictures ``[c 1 h w]`` as one tensor.

        Raises:
            ValueError: pictures beside those that are drawn, of several sizes, of frames, or no multiple of a patch.
        """
        inputs = dict(arguments)
        pictures = inputs.pop("x")
        shapes = {tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in pictures}
        shape = next(iter(shapes), ())
        if len(shapes) != 1 or len(shape) != 4 or shape[1] != 1 or shape[2] % _PATCH or shape[3] % _PATCH:
            raise ValueError(
                f"x must be a list of latents [c 1 h w] of one size with even sides, one for each picture; got "
                f"{', '.join(map(str, shapes)) or 'none'}. Draw pictures of several sizes one after the other; others "
                f"beside those that are drawn (editing, a list of lists) are not supported."
            )
        return Call(torch.stack(list(pictures))[:, :, 0], inputs.pop("t"), inputs)

    def split(self, inputs: Inputs, n: int) -> tuple[dict[str, Any], ...]:
        """Cut every caption, in width.

        Raises:
            ValueError: the captions are missing, or not packed for n experts.
        """
        captions, width = self._taken(inputs)[TEXT], self.denoiser.config.cap_feat_dim
        for caption in captions:
            if not isinstance(caption, Tensor) or caption.ndim != 2:
                raise ValueError(
                    f"{TEXT} must be a list with one tensor [s d] for each picture; got "
                    f"{tuple(caption.shape) if isinstance(caption, Tensor) else type(caption).__name__}. Lists of them "
                    f"belong to editing, which is not supported."
                )
            check_width(TEXT, caption, n * width, n)
        parts = [[part.contiguous() for part in caption.chunk(n, dim=1)] for caption in captions]
        return tuple({**inputs, TEXT: [own[index] for own in parts]} for index in range(n))

    def write(self, prediction: Tensor) -> Transformer2DModelOutput:
        """The record of ``ZImageTransformer2DModel.forward``: a list of predictions ``[c 1 h w]``."""
        return Transformer2DModelOutput(sample=list(prediction[:, :, None].unbind()))

    def open(self, sample: Tensor, timestep: Any, inputs: Inputs) -> Flow:
        """Embed latents, captions and time, and refine both sequences.

        Raises:
            ValueError: an argument that the schedule does not know, that is missing, or that changes nothing.
        """
        model, given = self.denoiser, self._taken(inputs)
        self._attention(given, timestep)
        time = model.t_embedder(timestep * model.t_scale).type_as(sample)
        captions, pictures = given[TEXT], list(sample[:, :, None].unbind())
        patches, words, _, *ids = model.patchify_and_embed(pictures, captions, _PATCH, _FRAMES)
        embedded = model.all_x_embedder[_KIND](torch.cat(patches)).split([len(one) for one in patches])
        image = self._refined(embedded, ids[::2], model.x_pad_token, model.noise_refiner, time)
        embedded = model.cap_embedder(torch.cat(words)).split([len(one) for one in words])
        text = self._refined(embedded, ids[1::2], model.cap_pad_token, model.context_refiner)
        whole, places, seen, _ = model._build_unified_sequence(
            *(*image, None, *text, None), *(None, None, None, None), False, sample.device
        )
        grid = (sample.shape[2] // _PATCH, sample.shape[3] // _PATCH)
        length = grid[0] * grid[1]
        residuals = self._residuals(given.get(_CONTROL), whole)
        order = torch.arange(text[0].shape[1], device=sample.device)
        mask = torch.stack([order < len(caption) for caption in captions])
        extra = Constants((seen, places), residuals)
        return Flow(on_grid(whole[:, :length], grid), (), time, text[0], extra, whole[:, length:], mask)

    def join(self, name: str, flow: Flow, feature: Feature) -> Flow:
        """Add what a ControlNet has for both streams after ``name``."""
        hidden, tokens, residual = feature.map, feature.tokens, (flow.extra.residuals or {}).get(name)
        if residual is not None and tokens is not None:
            length = residual.shape[1] - tokens.shape[1]
            hidden = hidden + on_grid(residual[:, :length], grid_of(hidden))
            tokens = tokens + residual[:, length:]
        return replace(flow, hidden=hidden, tokens=tokens)

    def close(self, flow: Flow) -> Tensor:
        """Final norm and projection, of the text too, as in ``forward``; patches are laid out as latents."""
        height, width = (_PATCH * side for side in grid_of(flow.hidden))
        whole = self.denoiser.all_final_layer[_KIND](_whole(rows(flow.hidden), flow), c=flow.time)
        sizes = [(_FRAMES, height, width)] * len(whole)
        return torch.stack(self.denoiser.unpatchify(list(whole.unbind()), sizes, _PATCH, _FRAMES))[:, :, 0]

    def _call(self, name: str, image: Tensor, flow: Flow) -> tuple[Tensor | None, Tensor]:
        (block,), length = self.modules(name), image.shape[1]
        whole = self._compute(block, _whole(image, flow), *flow.extra.arguments, flow.time)
        return whole[:, length:], whole[:, :length]

    def _refined(
        self, parts: Sequence[Tensor], ids: Sequence[Any], fill: Tensor, refiner: Iterable[nn.Module], *time: Tensor
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Sequences ``[b s d]`` behind a refiner, with their positions and lengths."""
        tokens, places, seen, lengths, _ = self.denoiser._prepare_sequence(
            list(parts), ids[0], ids[1], fill, None, parts[0].device
        )
        for layer in refiner:
            tokens = self._compute(layer, tokens, seen, places, *time)
        return tokens, places, lengths

    def _residuals(self, samples: Mapping[int, Tensor] | None, whole: Tensor) -> dict[str, Tensor]:
        for index, sample in (samples or {}).items():
            if not 0 <= index < len(self.names) or sample.shape[1:] != whole.shape[1:]:
                raise ValueError(
                    f"{_CONTROL} has a tensor of shape {tuple(sample.shape)} for layer {index}, but this transformer "
                    f"has the layers 0 to {len(self.names) - 1} and {whole.shape[1]} tokens of width {whole.shape[2]}, "
                    f"picture and caption filled up to multiples of 32. Use a ControlNet made for Z-Image, with the "
                    f"same pictures and captions."
                )
        return {self.names[index]: sample for index, sample in (samples or {}).items()}


def refuse_editing(denoiser: Any) -> None:
    """Make sure that a Z-Image transformer draws from text alone.

    Raises:
        ValueError: it is one for editing, or has no patches of 2 x 2 latents.
    """
    if denoiser.config.siglip_feat_dim is not None or _KIND not in denoiser.all_final_layer:
        raise ValueError(
            f"Ensembles draw one picture from text in patches of 2 x 2 latents, and this Z-Image transformer reads "
            f"several, or in others (siglip_feat_dim {denoiser.config.siglip_feat_dim}, all_patch_size "
            f"{tuple(denoiser.config.all_patch_size)}). Use experts of Z-Image or Z-Image-Turbo."
        )


def _whole(image: Tensor, flow: Flow) -> Tensor:
    """Both streams as one sequence."""
    text: Any = flow.tokens
    return torch.cat([image, text], dim=1)
