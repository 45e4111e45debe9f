"""Members of a family that are built or trained otherwise than its base model, by names and shapes of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diffusemble.experts.formats.families import PREFIXES, REPOSITORIES, SHORT
from diffusemble.experts.formats.header import Header


@dataclass(frozen=True)
class Edition:
    """What a checkpoint is within its family.

    Attributes:
        name: in words; None for what the family's base model is.
        repository: where its configuration is published; None where that is not known.
        edm: whether it was trained for the noise of EDM (Karras et al. 2022) and not for that of its family.
    """

    name: str | None
    repository: str | None
    edm: bool = False


_EDM = {
    "edm_mean": Edition("made for EDM (Playground 2.5)", "playgroundai/playground-v2.5-1024px-aesthetic", edm=True),
    "edm_vpred.": Edition("made for EDM with v-prediction (CosXL)", None, edm=True),
}
"""By the marks that their makers left among the tensors."""
_SCHNELL = Edition("without a guidance embedding (schnell)", "black-forest-labs/FLUX.1-schnell")
_FLUX2 = {
    3072: Edition("klein 4B", "black-forest-labs/FLUX.2-klein-4B"),
    4096: Edition("klein 9B", "black-forest-labs/FLUX.2-klein-9B"),
    6144: Edition("dev", "black-forest-labs/FLUX.2-dev"),
}
"""By the width of the image tokens."""
_LARGE = Edition("Large", "stabilityai/stable-diffusion-3.5-large")
_GUIDANCE = ("guidance_in.", "time_text_embed.guidance_embedder.")
_ENDS = (
    ("input_blocks.0.0.weight", "out.2.weight"),
    ("conv_in.weight", "conv_out.weight"),
    ("img_in.weight", "final_layer.linear.weight"),
    ("x_embedder.weight", "proj_out.weight"),
)
"""What reads a denoiser's input, and what gives its output, in U-Nets and FLUX."""
_INPAINTING, _LED, _DEPTH = "an inpainting model", "led by a picture that it edits or follows", "led by a depth map"
_REPOSITORIES: Mapping[tuple[str, str], str] = {
    (_INPAINTING, SHORT["sd1"]): "stable-diffusion-v1-5/stable-diffusion-inpainting",
    (_INPAINTING, SHORT["sd2"]): "sd2-community/stable-diffusion-2-inpainting",
    (_INPAINTING, SHORT["sdxl"]): "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
    (_INPAINTING, SHORT["flux"]): "black-forest-labs/FLUX.1-Fill-dev",
    (_LED, SHORT["sd1"]): "timbrooks/instruct-pix2pix",
    (_LED, SHORT["flux"]): "black-forest-labs/FLUX.1-Depth-dev",
}


def edition_of(header: Header, family: str) -> Edition:
    """The edition of a checkpoint of one of the ``REPOSITORIES``' families."""
    for mark, edition in _EDM.items():
        if header.has(mark):
            return edition
    reads, kind = _inputs(header)
    if kind is not None:
        return Edition(f"{kind}: it reads {reads} channels", _REPOSITORIES.get((kind, family)))
    if family == SHORT["flux"] and not header.has(*(prefix + one for prefix in PREFIXES for one in _GUIDANCE)):
        return _SCHNELL
    if family == SHORT["flux2"]:
        widths = {header.shape(prefix + first)[:1] for prefix in PREFIXES for first, _ in _ENDS[2:]}
        return next((edition for width, edition in _FLUX2.items() if (width,) in widths), Edition(None, None))
    if family == SHORT["sd35"] and not any(".attn2." in key for key in header.forms):
        return _LARGE
    return Edition(None, REPOSITORIES[family])


def _inputs(header: Header) -> tuple[int, str | None]:
    """How many channels a denoiser reads, and what those are for that are no latents."""
    for prefix in PREFIXES:
        for first, last in _ENDS:
            reads, gives = header.shape(prefix + first)[1:2], header.shape(prefix + last)[:1]
            if reads and gives:
                # A mask and the latents around it; FLUX has a mask of 4 times the channels.
                kinds = {gives[0] + 1: _INPAINTING, 5 * gives[0]: _INPAINTING, gives[0]: _LED, 1: _DEPTH}
                return reads[0], kinds.get(reads[0] - gives[0])
    return 0, None
