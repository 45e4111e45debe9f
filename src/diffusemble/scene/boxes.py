"""When four numbers are a box."""

from __future__ import annotations

from collections.abc import Sequence


def check_box(box: Sequence[float], what: str) -> tuple[float, float, float, float]:
    """The box, if it is one.

    Args:
        box: x1, y1, x2, y2.
        what: whose box it is, for messages.

    Raises:
        ValueError: it does not have four numbers, leaves the picture, or its corners are not in order.
    """
    corners = tuple(float(number) for number in box)
    if len(corners) != 4:
        raise ValueError(f"A box has four numbers x1, y1, x2, y2; that of {what} has {len(corners)}: {list(corners)}.")
    x1, y1, x2, y2 = corners
    if not all(0 <= number <= 1 for number in corners):
        raise ValueError(
            f"A box is given in shares of the picture, 0 to 1; that of {what} is {list(corners)}. Divide pixels by the "
            f"picture's width and height."
        )
    if x1 >= x2 or y1 >= y2:
        raise ValueError(
            f"A box goes from its left upper corner x1, y1 to its right lower one x2, y2; that of {what} is "
            f"{list(corners)}, which has x1 >= x2 or y1 >= y2."
        )
    return x1, y1, x2, y2
