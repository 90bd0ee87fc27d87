"""Any integer and any text is an id; references find what they mean, and nothing else."""

import pytest

from rdsnet.data.ids import References, id_order, is_id, plain_number, shown_id, whole_number


@pytest.mark.parametrize("value", [0, -7, 2**64 + 1, "", "7", "b3f0-44", "ü"])
def test_integers_and_text_are_ids(value):
    assert is_id(value)


@pytest.mark.parametrize("value", [True, None, 1.0, float("nan"), [1], {"id": 1}])
def test_nothing_else_is_an_id(value):
    assert not is_id(value)


def test_numbers_come_by_value_also_those_in_text_and_before_other_text():
    ids = ["frame", "10", 3, 2**70, "9", -1, "a"]
    assert sorted(ids, key=id_order) == [-1, 3, "9", "10", 2**70, "a", "frame"]


def test_order_is_the_same_whatever_the_order_before():
    ids = [1, "1", "01", " 1", "1.0"]
    assert sorted(ids, key=id_order) == sorted(reversed(ids), key=id_order)


@pytest.mark.parametrize(
    ("value", "number"),
    [(5, 5), (5.0, 5), ("5", 5), (" -5 ", -5), ("5.00", 5), (1e20, 10**20)]
    + [(v, None) for v in (5.5, "5.5", "five", "", True, None, float("inf"), "0x5", "1_0", "5,0")],
)
def test_whole_numbers_are_those_that_a_value_says_beyond_doubt(value, number):
    assert whole_number(value) == number and type(whole_number(value)) is type(number)


@pytest.mark.parametrize(
    ("value", "number"),
    [(2.5, 2.5), ("2.5", 2.5), ("-.5", -0.5), ("3", 3), ("1e2", 100.0)]
    + [(v, None) for v in ("2,5", "nan", "inf", "", "2.5px", True, None)],
)
def test_plain_numbers_may_be_text(value, number):
    assert plain_number(value) == number


def test_a_reference_that_is_an_id_means_that_one():
    references = References([1, "1", "a"])
    assert [references.find(r) for r in (1, "1", "a")] == [1, "1", "a"]


@pytest.mark.parametrize(
    ("ids", "reference", "meant"),
    [
        ([4, 5], "4", 4),
        ([4, 5], 4.0, 4),
        ([4, 5], "4.0", 4),
        (["4", "5"], 4, "4"),
        (["004", "5"], 4, "004"),
        (["a b"], " a b ", "a b"),
        # What became of this id in a column of floats is the float next to it.
        ([2**60 + 3, 7], float(2**60), 2**60 + 3),
    ],
)
def test_a_reference_may_be_written_in_another_way(ids, reference, meant):
    found = References(ids).find(reference)
    assert found == meant and type(found) is type(meant)


@pytest.mark.parametrize(
    ("ids", "reference"),
    [
        (["4", "04"], 4),  # two mean the same
        ([2**60, 2**60 + 3], float(2**60)),  # two have the same float
        ([1, 0], True),
        ([4], 4.5),
        ([4], None),
        ([4], [4]),
        (["A"], "a"),
        ([10**400], 1e300),
    ],
)
def test_a_reference_in_doubt_means_none(ids, reference):
    assert References(ids).find(reference) is None


def test_long_ids_are_shown_with_both_ends():
    shown = shown_id("x" * 100 + "end")
    assert len(shown) <= 60 and shown.startswith("'xxx") and shown.endswith("end'")
    assert shown_id(12) == "12" and shown_id("12") == "'12'"
