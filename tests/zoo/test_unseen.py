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
    assert {row["split"] for row in rows} <= {"experts", "pair", "validation"} or {row["split"] for row in rows} == {
        "rest"
    }
    assert rows[0]["file_name"].endswith("/1f42f.png")


def test_a_tenth_of_the_pairs_of_wide_things_is_kept_from_the_experts():
    listed = {chr(0x4E00 + i): {"name": f"thing {i}", "group": "Objects"} for i in range(400)}
    rows = list(unseen_rows(listed, chosen=set(), drawn={f"{0x4E00 + i:x}" for i in range(400)}))
    share = {
        split: sum(row["split"] == split for row in rows) / len(rows)
        for split in ("experts", "pair", "validation", "rest")
    }
    assert abs(share["rest"] - 0.2) < 0.05
    assert abs(share["pair"] - 0.064) < 0.02
    assert abs(share["validation"] - 0.016) < 0.01
    of_thing = {row["concept"]: set() for row in rows}
    for row in rows:
        of_thing[row["concept"]].add(row["split"])
    assert all(splits == {"rest"} or "rest" not in splits for splits in of_thing.values())
