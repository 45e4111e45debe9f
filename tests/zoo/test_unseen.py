from recipes.zoo.data import STYLES
from recipes.zoo.unseen import unseen_rows

LISTED = {
    "🐯": {"name": "Tiger Face", "group": "Animals & Nature"},
    "🍓": {"name": "strawberry", "group": "Food & Drink"},
    "🚀": {"name": "rocket", "group": "Travel & Places"},
    "🇫🇷": {"name": "flag France", "group": "Flags"},
}


def test_takes_what_is_drawn_and_not_chosen_in_every_style():
    rows = list(unseen_rows(LISTED, chosen={"1f353"}, drawn={"1f42f", "1f353", "1f1eb-1f1f7"}))
    assert [row["text"] for row in rows] == [f"tiger face, {style} style" for style in STYLES]
    assert {row["topic"] for row in rows} == {"animals"}
    assert len({row["split"] for row in rows}) == 1  # an emoji is for the experts or for the aggregator, in all styles
    assert rows[0]["file_name"].endswith("/1f42f.png")
