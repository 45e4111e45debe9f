import pytest

from diffusemble.evaluation.scenes.boxes import iou, stands

LEFT, RIGHT = (0.1, 0.3, 0.4, 0.6), (0.5, 0.35, 0.8, 0.65)
TOP, LOW = (0.3, 0.1, 0.6, 0.4), (0.3, 0.5, 0.6, 0.8)
RESTING = (0.3, 0.42, 0.6, 0.72)
BIG, SMALL = (0.1, 0.1, 0.7, 0.7), (0.5, 0.5, 0.8, 0.8)


def test_overlap_has_its_closed_form():
    assert iou(LEFT, LEFT) == 1
    assert iou(LEFT, RIGHT) == 0
    assert iou((0, 0, 2, 1), (1, 0, 3, 1)) == pytest.approx(1 / 3)
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


@pytest.mark.parametrize(
    ("relation", "subject", "other"),
    [
        ("left of", LEFT, RIGHT),
        ("right of", RIGHT, LEFT),
        ("above", TOP, LOW),
        ("below", LOW, TOP),
        ("on", TOP, RESTING),
        ("holding", BIG, SMALL),
    ],
)
def test_a_relation_holds_one_way_only(relation, subject, other):
    assert stands(relation, subject, other)
    assert not stands(relation, other, subject)


def test_relations_exclude_each_other():
    assert not stands("left of", TOP, LOW)
    assert not stands("above", LEFT, RIGHT)
    assert not stands("on", TOP, LOW)  # does not touch
    assert not stands("on", (0.0, 0.1, 0.2, 0.4), (0.6, 0.4, 0.8, 0.7))  # touches in height, stands beside
    assert not stands("holding", TOP, RESTING)
    assert stands("above", TOP, RESTING)


def test_relations_are_mirrored():
    def mirrored(box):
        return (1 - box[2], box[1], 1 - box[0], box[3])

    for subject, other in ((LEFT, RIGHT), (TOP, LOW), (BIG, SMALL), (RIGHT, LEFT)):
        assert stands("left of", subject, other) == stands("right of", mirrored(subject), mirrored(other))
        for relation in ("above", "on", "holding"):
            assert stands(relation, subject, other) == stands(relation, mirrored(subject), mirrored(other))


def test_unknown_relations_are_refused():
    with pytest.raises(ValueError, match="Unknown relation 'near'"):
        stands("near", LEFT, RIGHT)
