"""Another VAE for an expert: from a file of its own, from a checkpoint, or from a diffusers folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch.nn.functional import cosine_similarity

from diffusemble.experts.assembly import choose, empty, fill
from diffusemble.experts.checksums import part_variant, sha256
from diffusemble.experts.expert import latent_space
from diffusemble.experts.folder import first_sentence, quiet
from diffusemble.experts.formats.checkpoint import open_checkpoint
from diffusemble.experts.formats.contents import VAE, VAE_STARTS, contents_of
from diffusemble.experts.formats.header import Header, read_header
from diffusemble.experts.hub import is_hub_id
from diffusemble.experts.layouts.parts import vae_layouts
from diffusemble.experts.sources import Addition

_KIN = 0.2
"""``kinship`` of VAEs that were trained apart is below it, of those made from one another far above."""
_LOG = logging.getLogger(__name__)


def other_vae(own: Any, added: Addition, dtype: torch.dtype) -> tuple[Any, str]:
    """The VAE that takes the place of an expert's own, and the SHA-256 of its file.

    Args:
        own: the expert's, whose configuration tells the latent space.
        added: where the other one is.
        dtype: number type of its weights.

    Raises:
        ValueError: there is no VAE, or its latents mean something else.
    """
    if own is None:
        raise ValueError(f"{added.where}: this model has no VAE whose place another one could take.")
    place = _folder(added.where)
    if place is None:
        header = read_header(Path(added.where).expanduser())
        vae, file = _from_file(own, header, dtype), header.file
    else:
        variant = part_variant(place)
        vae = _from_folder(type(own), place, variant, dtype)
        file = place / f"diffusion_pytorch_model{f'.{variant}' if variant else ''}.safetensors"
    mine, other = latent_space(vae), latent_space(own)
    for key, value in mine.items():
        if value != other[key]:
            raise ValueError(
                f"The VAE of {added.where} has {key} {value!r}, but the model's own has {other[key]!r}. Give a VAE of "
                f"the model's family."
            )
    kin = kinship(vae, own)
    if kin < _KIN:
        _LOG.warning(
            f"{added.where}: this VAE and the model's own were trained apart (the cosine of their encoders' weights is "
            f"{abs(kin):.2f}), so its latents most likely mean something else, and colours come out wrong. Give a VAE "
            f"of the model's family."
        )
    return vae, sha256(file)


def kinship(one: Any, other: Any) -> float:
    """Mean cosine of the matrices and kernels that two VAEs' encoders have alike; 1 where there are none.

    A VAE's file tells nothing of what its latents mean: those of SD 1.x and SDXL are built alike, too. But fine-tuning
    an encoder hardly turns its weights, rescaling its layers does not turn them at all, and those of encoders that were
    trained apart are orthogonal, as random numbers are.
    """
    theirs = {(name, weight.shape): weight for name, weight in other.encoder.named_parameters()}
    mine = {(name, weight.shape): weight for name, weight in one.encoder.named_parameters() if weight.ndim > 1}
    with torch.no_grad():
        turns = [
            cosine_similarity(mine[key].flatten().float(), theirs[key].flatten().float(), dim=0)
            for key in mine.keys() & theirs.keys()
        ]
    return float(torch.stack(turns).mean()) if turns else 1.0


def _folder(where: str) -> Path | None:
    """The folder of a VAE: a zoo model's, a pipeline's, or its own."""
    if where.startswith("zoo:"):
        from diffusemble import zoo

        return zoo.folder(where.removeprefix("zoo:")) / "vae"
    if is_hub_id(where):
        return _fetched(where)
    path = Path(where).expanduser()
    if path.is_file():
        return None
    inside = path / "vae" if (path / "vae").is_dir() else path
    if not (inside / "config.json").is_file():
        raise ValueError(f"{path} has no VAE: neither a folder vae nor a config.json. Give a VAE's folder or file.")
    return inside


def _fetched(where: str) -> Path:
    """The folder of a VAE on the hub, downloaded if need be: a repository of its own, or a pipeline's."""
    repository, _, revision = where.partition("@")
    for part in ("", "vae/"):
        try:
            files = [
                hf_hub_download(repository, f"{part}{name}", revision=revision or None)
                for name in ("config.json", "diffusion_pytorch_model.safetensors")
            ]
            return Path(files[0]).parent
        except (OSError, ValueError) as problem:
            error = problem
    raise ValueError(
        f"The VAE {where} is not a local path, and no repository with a VAE in safetensors could be fetched under this "
        f"name ({first_sentence(error)}). Check the spelling and the connection."
    )


def _from_folder(cls: Any, place: Path, variant: str | None, dtype: torch.dtype) -> Any:
    settings: dict[str, Any] = {"dtype": dtype, "variant": variant, "use_safetensors": True}
    try:
        with quiet():
            return cls.from_pretrained(str(place), **settings).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{place} cannot be opened as a VAE ({first_sentence(error)}). Copy it again.") from error


def _from_file(own: Any, header: Header, dtype: torch.dtype) -> Any:
    contents = contents_of(header)
    if contents.kind != VAE and not header.has(*VAE_STARTS):
        raise ValueError(f"{header.file} holds no VAE: it is {contents}. Give a VAE's file or folder.")
    vae = empty(type(own), dict(own.config))
    with open_checkpoint(header) as checkpoint:
        plan = choose(vae, vae_layouts(alone=contents.kind == VAE), checkpoint)
        try:
            fill(vae, plan, checkpoint, dtype)
        except (KeyError, ValueError) as error:
            what = f"it lacks the tensor {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"The VAE in {header.file} is not built like the model's own: {what}. Give a VAE of the model's family."
            ) from error
    return vae
