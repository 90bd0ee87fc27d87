"""The tables of ``rdsnet paper``, from results made by hand."""

import pytest

from rdsnet.paper import published
from rdsnet.paper.beyond import beyond_the_paper
from rdsnet.paper.tables import difference, table_1, table_2, table_3, table_4, verdict

NAN = float("nan")


def metrics(ap):
    return dict.fromkeys(published.METRICS, ap)


def run(box, regressed, mask, expand="None", **more):
    tasks = {"bbox": metrics(box), "bbox_regressed": metrics(regressed), "segm": metrics(mask)}
    return {"metrics": {expand: tasks}, **more}


RUNS = {
    "rdsnet": [run(40, 38, 31), run(42, 40, 33)],
    "mask_rcnn": [run(39, 39, 33), run(41, 41, 34)],
    "retinanet": [run(37.5, 37, 0), run(38.5, 38, 0)],
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
        "yolact": [run(0, 0, 28, "1.0"), run(0, 0, 30, "1.0")],
        "corr": [{"metrics": {"1.0": {"segm": metrics(ap)}, "1.2": two[1]}} for ap in (29, 31)],
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
    assert not any("APl" in sentence for sentence in table.sentences)
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


def test_what_the_paper_leaves_open_is_shown_where_there_are_results():
    assert beyond_the_paper(RUNS)[0].key == "detectors" and len(beyond_the_paper(RUNS)) == 1
    errors = {"objects": 10, "regressed": 3.0, "direct": 2.0, "MBRM": 1.5}
    none = {"objects": 0, "regressed": NAN, "direct": NAN, "MBRM": NAN}
    result = run(40, 38, 31)
    result["metrics"] = {"1.0": run(39, 38, 29)["metrics"]["None"], **result["metrics"]}
    result["errors"] = {"small": errors, "medium": errors, "large": none}
    sizes, expansion, detectors = beyond_the_paper({"rdsnet": [result]})
    assert [row[0] for row in sizes.table.rows] == ["small", "medium"]
    assert sizes.table.rows[0][1:] == ["10", "3.00", "2.00", "1.50", "1.50"]
    assert [row[1] for row in expansion.table.rows] == ["29.0", "31.0"]
    assert "+2.0 mask AP and +1.0 box AP" in expansion.sentences[0]
    assert detectors.table.rows == [["RDSNet", "38.0", "+2.0", "+2.0", "+2.0"]]
