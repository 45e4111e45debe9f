"""Pictures that adapters read, and what is said of files that cannot be read."""

from __future__ import annotations

from PIL import Image, UnidentifiedImageError


def read_picture(file: str, key: str) -> Image.Image:
    """The picture of a configuration's ``key``.

    Raises:
        ValueError: there is none.
    """
    try:
        return Image.open(file).convert("RGB")
    except (FileNotFoundError, UnidentifiedImageError, IsADirectoryError) as error:
        what = "there is no file" if isinstance(error, FileNotFoundError) else "this is no picture:"
        raise ValueError(f"{key}: {what} {file}. Give the path of a picture.") from error


def first_line(error: BaseException) -> str:
    """Of what an error says."""
    return (str(error).strip().splitlines() or ["unreadable"])[0][:120]
