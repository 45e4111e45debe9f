import random

from PIL import Image

from recipes.zoo.views import view


def test_a_view_is_smaller_on_white_and_depends_on_the_seed_alone():
    black = Image.new("RGB", (64, 64), "black")
    first, again, other = (view(black, random.Random(seed)) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()
    left, top, right, bottom = Image.eval(first, lambda value: 255 - value).getbbox()
    assert 50 <= right - left == bottom - top <= 60


def test_mirroring_happens_to_most_but_not_all():
    half = Image.new("RGB", (64, 64), "white")
    half.paste("black", (0, 0, 32, 64))
    chance = random.Random(0)
    sides = []
    for _ in range(40):
        left, _, right, _ = Image.eval(view(half, chance), lambda value: 255 - value).getbbox()
        sides.append((left + right) / 2 > 32)
    assert 20 <= sum(sides) < 40
