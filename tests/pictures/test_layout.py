from __future__ import annotations

from PIL import Image, ImageColor

from diffusemble.pictures.layout import Arrow, Frame, colour_of, layout_picture
from diffusemble.pictures.sheet import enlarge

GREY = Image.new("RGB", (96, 64), "#808080")


def test_boxes_stand_where_they_were_asked_for() -> None:
    frames = [Frame("a cat", (0.25, 0.25, 0.5, 1.0)), Frame("a box", (0.6, 0.0, 1.0, 0.5))]
    shown = layout_picture(GREY, frames)
    assert shown.size == enlarge(GREY).size == enlarge(shown).size
    last = shown.width - 1, shown.height - 1
    for number, frame in enumerate(frames):
        for x, y in ((2, 3), (2, 1)):  # corners without the label
            at = round(frame.box[x] * last[0]), round(frame.box[y] * last[1])
            assert shown.getpixel(at) == ImageColor.getrgb(colour_of(number)), (number, at)
    assert shown.getpixel((5, last[1] - 5)) == (128, 128, 128)


def test_the_picture_itself_stays_as_it_is() -> None:
    before = GREY.tobytes()
    layout_picture(GREY, [Frame("x", (0, 0, 1, 1))])
    assert GREY.tobytes() == before


def test_arrows_lead_from_subject_to_object() -> None:
    frames = [Frame("a", (0.0, 0.3, 0.2, 0.7)), Frame("b", (0.8, 0.3, 1.0, 0.7))]
    without = layout_picture(GREY, frames)
    there, back = (layout_picture(GREY, frames, [Arrow("on", *ends)]) for ends in ((0, 1), (1, 0)))
    assert there.tobytes() != without.tobytes()
    assert there.tobytes() != back.tobytes()  # the head is at the other end
    assert layout_picture(GREY, frames, [Arrow("and", 0, 0)]).tobytes() == without.tobytes()


def test_words_stay_inside_however_small_the_box() -> None:
    layout_picture(GREY, [Frame("a very long phrase that is wider than the picture", (0.9, 0.95, 1.0, 1.0))])
    same = [Frame("a", (0.1, 0.1, 0.9, 0.9)), Frame("b", (0.1, 0.1, 0.9, 0.9))]
    layout_picture(GREY, same, [Arrow("over", 0, 1)])
