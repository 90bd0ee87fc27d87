"""The tables of ``rdsnet paper``, from results made by hand."""

import pytest

from rdsnet.paper import published
from rdsnet.paper.beyond import (
    beyond_the_paper,
    detectors_table,
    expansion_table,
    sizes_table,
)
from rdsnet.paper.tables import difference, table_1, table_2, table_3, table_4, verdict

NAN = float("nan")


def metrics(ap):
    return dict.fromkeys(published.METRICS, ap)


def run(box, regressed, mask, expand="None", seed=1, **more):
    tasks = {"bbox": metrics(box), "bbox_regressed": metrics(regressed), "segm": metrics(mask)}
    return {"metrics": {expand: tasks}, "seed": seed, **more}


RUNS = {
    "rdsnet": [run(40, 38, 31), run(42, 40, 33, seed=2)],
    "mask_rcnn": [run(39, 39, 33), run(41, 41, 34, seed=2)],
    "retinanet": [run(37.5, 37, 0), run(38.5, 38, 0, seed=2)],
}


def test_ours_stand_above_the_papers_and_means_have_errors():
    table = table_1(RUNS, {"rdsnet": 12.34})
    rows = {row[0]: row for row in table.table.rows if row[0] != "… the paper"}
    assert rows["RDSNet"][:3] == ["RDSNet", "12.3", "32.0 ± 1.0"]
    assert rows["Mask R-CNN"][1] == "-"
    assert table.table.rows[-3] == [
        "… the paper",
        "",
        "34.6",
        "55.8",
        "36.7",
        "14.9",
        "37.4",
        "50.3",
    ]
    assert "Cascade Mask R-CNN" not in rows  # was not trained
    (sentence,) = table.sentences
    assert sentence.startswith("RDSNet over Mask R-CNN: -1.5 ± 0.5 mask AP over 2 seeds; the paper")
    assert sentence.endswith("The paper's direction shows.")


def test_the_detector_alone_masks_and_mbrm_are_three_rows():
    rows = [row for row in table_2(RUNS, {}).table.rows if row[0] != "… the paper"]
    assert [(row[0], row[2]) for row in rows] == [
        ("Mask R-CNN", "40.0 ± 1.0"),
        ("RetinaNet", "37.5 ± 0.5"),  # as regressed
        ("+ mask", "39.0 ± 1.0"),
        ("+ MBRM", "41.0 ± 1.0"),
    ]
    masks, mbrm = table_2(RUNS, {}).sentences
    assert "Masks beside boxes: +1.5 ± 0.5" in masks and "the paper: +1.3" in masks
    assert "MBRM: +2.0 ± 0.0 box AP" in mbrm


def test_gains_of_table_3_are_paired_by_seed():
    two = {"segm": metrics(30)}, {"segm": metrics(29)}
    runs = {
        "yolact": [run(0, 0, 30, "1.0", seed=2), run(0, 0, 28, "1.0")],
        "corr": [
            {"metrics": {"1.0": {"segm": metrics(ap)}, "1.2": two[1]}, "seed": seed}
            for seed, ap in ((1, 29), (2, 31))
        ],
    }
    table = table_3(runs)
    first, second, third = table.table.rows[:3]
    assert first[1:] == ["linear combination", "", "", "", "29.0 ± 1.0", "", "29.9", ""]
    assert second[5:] == ["30.0 ± 1.0", "+1.0 ± 0.0", "31.0", "+1.1"]
    assert third[2:5] == ["", "", "x"]
    assert table.table.rows[6][5] == "-"  # not trained
    assert len(table.sentences) == 2


def test_table_4_leaves_out_sizes_without_objects():
    result = {"none": metrics(30.0), "direct": metrics(29.0), "MBRM": metrics(31.0)}
    for values in result.values():
        values["APl"] = NAN
    table = table_4({"rdsnet": [{"table4": result}]})
    assert [row[0] for row in table.table.rows][::2] == [
        "as regressed",
        "direct (rectangle around the mask)",
        "MBRM",
    ]
    assert table.table.rows[0][-1] == "-"
    assert not any("large" in sentence for sentence in table.sentences)
    assert any(s.startswith("MBRM: +1.0 box AP; the paper: +1.3.") for s in table.sentences)


@pytest.mark.parametrize(
    ("differences", "paper", "end"),
    [
        ([1.0, 1.2], 0.5, "The paper's direction shows."),
        ([-1.0, -1.2], 0.5, "The opposite direction shows."),
        ([1.0, -0.8], 0.5, "Less than two standard errors: not decided here."),
        ([-0.1], 0.5, "The opposite direction, in one seed."),
        ([0.01], 0.5, "No difference here."),
    ],
)
def test_a_direction_is_claimed_only_beyond_two_standard_errors(differences, paper, end):
    assert verdict("x", differences, paper, "AP").endswith(end)


def test_a_difference_needs_both():
    assert difference(RUNS, "x", "rdsnet", "yolact", "segm", 1.0) is None


def test_a_seed_that_one_of_them_lacks_is_left_out():
    runs = {"rdsnet": [run(0, 0, 31), run(0, 0, 33, seed=2)], "yolact": [run(0, 0, 30, seed=2)]}
    assert difference(runs, "x", "rdsnet", "yolact", "segm", 1.0).startswith("x: +3.0 mask AP; ")


def test_a_model_that_has_found_nothing_is_a_dash():
    nothing = {"metrics": {"1.0": {}, "1.2": {}}, "seed": 1}
    table = table_3({"yolact": [run(0, 0, 28, "1.0")], "corr": [nothing]})
    assert [row[5] for row in table.table.rows[:2]] == ["28.0", "-"] and not table.sentences


# ------------------------------------------------------------- beyond the paper


def sized(small, large):
    """A result with errors of edges: (objects, side, regressed, direct, MBRM)."""
    names = ("objects", "side", "regressed", "direct", "MBRM")
    parts = {"small": small, "medium": (0, NAN, NAN, NAN, NAN), "large": large}
    made = {size: dict(zip(names, values)) for size, values in parts.items()}
    return run(40, 38, 31, errors=made)


def test_why_large_objects_gain_most_is_said_by_how_errors_grow():
    result = sized((100, 20.0, 1.0, 2.0, 1.0), (40, 200.0, 10.0, 4.0, 6.0))
    result["table4"] = {
        "none": {"APs": 20.0, "APl": 50.0},
        "direct": {"APs": 15.0, "APl": 52.0},
        "MBRM": {"APs": 20.0, "APl": 53.0},
    }
    table = sizes_table({"rdsnet": [result]})
    small, large = table.table.rows
    assert small[:4] == ["small", "100", "20 px", "1.00 px (5.0%)"]
    assert small[-2:] == ["-5.0", "0.0"] and large[-2:] == ["+2.0", "+3.0"]
    text = " ".join(table.sentences)
    assert "sides grow 10.0-fold, the error of regressed edges 10.0-fold" in text
    assert "that of masks' edges 2.0-fold" in text and "2.00 on small, 0.40 on large" in text
    assert "of large objects a mask knows more beside the box than of small ones" in text
    assert "+0.00 px on small, +4.00 px on large" in text


def test_where_masks_are_no_better_on_large_objects_that_is_said():
    table = sizes_table({"rdsnet": [sized((100, 20.0, 2.0, 1.0, 1.5), (40, 200.0, 4.0, 4.0, 4.0))]})
    assert "does not hold here" in " ".join(table.sentences)
    only = sized((100, 20.0, 2.0, 1.0, 1.5), (0, NAN, NAN, NAN, NAN))
    few = sized((100, 20.0, 1.0, 2.0, 1.0), (19, 200.0, 10.0, 4.0, 6.0))
    for result in (only, few):
        assert "cannot answer" in sizes_table({"rdsnet": [result]}).sentences[0]


def test_what_is_lost_without_the_expansion():
    result = run(40, 38, 31)
    result["metrics"] = {"1.0": run(39, 38, 29)["metrics"]["None"], **result["metrics"]}
    table = expansion_table({"rdsnet": [result]})
    assert [row[1] for row in table.table.rows] == ["29.0", "31.0"]
    assert [row[-1] for row in table.table.rows] == ["+1.0", "+2.0"]  # gain of MBRM
    assert table.sentences[0].startswith("Without the expansion: -2.0 mask AP and -1.0 box AP.")


def test_whether_the_gain_survives_a_better_detector():
    titles = {"rdsnet_better": "RDSNet, ATSS", "rdsnet_finer": "RDSNet, fine"}
    runs = {"rdsnet": [run(40, 38, 31)], "rdsnet_better": [run(43.5, 43, 33)]}
    runs["rdsnet_finer"] = [run(38, 38, 33)]
    table = detectors_table(runs, titles)
    assert [row[:3] for row in table.table.rows] == [
        ["RDSNet", "38.0", "+2.0"],
        ["RDSNet, ATSS", "43.0", "+0.5"],
        ["RDSNet, fine", "38.0", "0.0"],
    ]
    better, finer = table.sentences
    assert better == (
        "RDSNet, ATSS: +5.0 box AP as regressed against RDSNet; MBRM then gives +0.5 instead of "
        "+2.0: a change of -1.5, in one seed."
    )
    assert finer.endswith("no gain is left, in one seed.")
    runs["rdsnet"] = [run(38, 38, 31)]
    assert "RDSNet itself gains nothing" in detectors_table(runs, titles).sentences[0]


def test_what_the_paper_leaves_open_is_shown_where_there_are_results():
    assert beyond_the_paper(RUNS) == []
    assert [
        table.key for table in beyond_the_paper({"rdsnet": [sized((9, 9, 1, 1, 1), (0,) * 5)]})
    ] == ["sizes"]
