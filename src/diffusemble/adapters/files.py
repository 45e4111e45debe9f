"""Files that adapters read: looked at before anything is loaded, and what is said of those that cannot be read."""

from __future__ import annotations

from pathlib import Path

from diffusemble.config.adapters import AdapterConfig, ImagePromptConfig
from diffusemble.config.places import looked
from diffusemble.experts.hub import parse_part
from diffusemble.experts.sources import parse_additions
from diffusemble.pictures.files import read_picture

ENCODER = (
    "Set image_prompts.encoder to the folder or hub id of the CLIP vision model that the adapter was trained with."
)


def check_files(config: AdapterConfig) -> None:
    """Make sure that all files of a configuration's adapters are there, and its pictures whole.

    Raises:
        ValueError: names the key and the file that is missing or damaged.
    """
    for lora in config.loras:
        parse_additions(lora, "loras")
    for key in ("controlnets", "t2i_adapters"):
        for net in getattr(config, key):
            parse_part(net.model, f"{key}.model")
            read_picture(net.image, f"{key}.image")
    for prompt in config.image_prompts:
        check_weights(prompt)
        encoder_place(prompt)
        read_picture(prompt.image, "image_prompts.image")
        if prompt.mask is not None:
            read_picture(prompt.mask, "image_prompts.mask")


def check_weights(prompt: ImagePromptConfig) -> None:
    """Make sure that the file of an IP-Adapter is there.

    Raises:
        ValueError: it is not.
    """
    if not Path(prompt.weights).is_file():
        raise ValueError(
            f"image_prompts.weights: there is no file {looked(prompt.weights)}. Give that of an IP-Adapter."
        )


def encoder_place(prompt: ImagePromptConfig) -> tuple[str, str | None]:
    """Where the image encoder of an IP-Adapter is: folder or hub repository, and revision.

    Raises:
        ValueError: there is no such folder.
    """
    if prompt.encoder is not None:
        return parse_part(prompt.encoder, "image_prompts.encoder")
    beside = Path(prompt.weights).parent / "image_encoder"
    if not beside.is_dir():  # the hub would be asked for it
        raise ValueError(
            f"image_prompts: there is no folder {beside}, where the image encoder of {prompt.weights} is looked for. "
            f"{ENCODER}"
        )
    return str(beside), None


def first_line(error: BaseException) -> str:
    """Of what an error says."""
    return (str(error).strip().splitlines() or ["unreadable"])[0][:120]
