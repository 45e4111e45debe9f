"""A picture that knows how it was made: its configuration travels in the PNG file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

DOCUMENT_KEY = "diffusemble"


def save_png(image: Image.Image, file: str | Path, document: str, notes: Mapping[str, str]) -> Path:
    """Write a PNG with ``document`` (the configuration as YAML) and further ``notes`` as international text chunks.

    Returns:
        The file.

    Raises:
        FileExistsError: there is a file of that name; nothing is ever overwritten.
    """
    info = PngInfo()
    for key, text in {**notes, DOCUMENT_KEY: document}.items():
        info.add_itxt(key, text)
    with Path(file).open("xb") as stream:
        image.save(stream, format="png", pnginfo=info)
    return Path(file)


def read_document(file: str | Path) -> str:
    """The configuration that ``save_png`` wrote.

    Raises:
        ValueError: the file is no picture, or carries no configuration.
    """
    try:
        with Image.open(file) as image:
            image.load()  # text chunks may follow the pixels
            document = image.info.get(DOCUMENT_KEY)
    except (UnidentifiedImageError, SyntaxError, OSError) as error:
        raise ValueError(f"{file} is not a readable picture ({error}). Give the file as it was written.") from error
    if document is None:
        raise ValueError(
            f"{file} carries no configuration. Only pictures of `diffusemble generate` and `diffusemble control` do, "
            f"and programs that edit or convert a picture drop it; give the .yaml file that was written beside it."
        )
    return str(document)
