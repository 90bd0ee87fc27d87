"""What ``rdsnet paper`` decides, keeps and refuses."""

import json

import pytest

from rdsnet.data.shapes import make_shapes_dataset
from rdsnet.paper import runs
from rdsnet.paper.plan import Paper
from rdsnet.paper.trainings import TABLES, trainings


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """(data, val) of made-up photographs."""
    made = make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=2)
    return [[made[f"{part}_json"], made[f"{part}_images"]] for part in ("train", "val")]


def make(tmp_path, shapes, **more):
    data, val = shapes
    keys = {"family": "lite", "data": data, "val": val, "seeds": [1, 2], "iterations": 40, **more}
    return Paper(folder=tmp_path / "paper", **keys)


@pytest.fixture
def paper(tmp_path, shapes):
    made = make(tmp_path, shapes)
    made.decide_on_data()
    return made


def test_a_training_that_several_tables_need_is_planned_once():
    names = [t.name for t in trainings("lite", TABLES, resized=True)]
    assert len(names) == len(set(names)) == 13
    assert [t.name for t in trainings("lite", ["table3"], True)] == [
        *("yolact", "corr", "corr_te", "rdsnet_s")
    ]
    assert [t.name for t in trainings("lite", ["fig5"], True)] == ["rdsnet"]
    assert "rdsnet_600" not in {t.name for t in trainings("lite", TABLES, resized=False)}


@pytest.mark.parametrize("family", ["lite", "R_50", "R_101"])
def test_every_config_of_every_family_is_there(family, tmp_path):
    paper = Paper(tmp_path, family, ["coco", None], None, [1], iterations=24)
    paper.decide_on_data()
    for training in paper.trainings:
        cfg = paper.config(training, 3)
        assert cfg.DATASETS.TRAIN == ("coco_2017_train",) and cfg.SEED == 3
        assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (24, (16, 22))
        if family != "lite":
            assert cfg.MODEL.RESNETS.DEPTH == int(family[2:])


def test_on_coco_without_a_budget_every_model_has_its_own_schedule(tmp_path):
    paper = Paper(tmp_path, "R_101", ["coco", None], None, [1])
    paper.decide_on_data()
    paper.decide_on_iterations()
    iterations = {t.name: paper.config(t, 1).SOLVER.MAX_ITER for t in paper.trainings}
    assert iterations["rdsnet"] == 175_899 and iterations["yolact"] == 800_000
    assert iterations["mask_rcnn"] == 90_000


def test_peers_on_coco_are_trained_at_one_scale_as_in_the_paper(tmp_path):
    paper = Paper(tmp_path, "R_101", ["coco", None], None, [1])
    paper.decide_on_data()
    for training in paper.trainings:
        if not training.own_input:
            assert paper.config(training, 1).INPUT.MIN_SIZE_TRAIN == (training.scaled(800),)


@pytest.mark.parametrize(
    ("options", "batch", "rates"),
    [
        ([], 8, {"rdsnet": 0.005, "mask_rcnn": 0.01}),
        (["SOLVER.IMS_PER_BATCH", "4"], 4, {"rdsnet": 0.0025, "mask_rcnn": 0.005}),
        (["SOLVER.BASE_LR", "0.1"], 8, {"rdsnet": 0.1, "mask_rcnn": 0.1}),
    ],
)
def test_equal_iterations_on_coco_are_of_equal_batches(tmp_path, options, batch, rates):
    """Detectron2's configs have 16 images and a rate of 0.02, the paper's RDSNet 8 and 0.005."""
    paper = Paper(tmp_path, "R_50", ["coco", None], None, [1], iterations=100, options=options)
    paper.decide_on_data()
    for training in paper.trainings:
        solver = paper.config(training, 1).SOLVER
        assert solver.IMS_PER_BATCH == batch
        if training.name in rates:
            assert solver.BASE_LR == pytest.approx(rates[training.name])


@pytest.mark.parametrize("iterations", [1, 2, 4, 5, 40])
def test_a_short_training_has_a_schedule_that_detectron2_accepts(tmp_path, iterations):
    paper = Paper(tmp_path, "lite", ["coco", None], None, [1], iterations=iterations)
    paper.decide_on_data()
    steps = paper.config(paper.trainings[0], 1).SOLVER.STEPS
    assert all(0 < step < iterations for step in steps) and list(steps) == sorted(set(steps))


@pytest.mark.parametrize("family", ["lite", "R_50"])
def test_variants_differ_from_rdsnet_in_what_they_say(tmp_path, family):
    """Anchors that suit the data stay, unless assignment by ATSS or IoU needs others."""
    paper = Paper(tmp_path, family, ["coco", None], None, [1], iterations=40)
    paper.decide_on_data()
    sizes = [[10], [20], [40], [80], [160]]
    levels = ("p3", "p4", "p5", "p6", "p7")
    paper.data_options["MODEL.ANCHOR_GENERATOR.SIZES"] = sizes
    paper.data_options["MODEL.RETINANET.IN_FEATURES"] = levels
    cfgs = {t.name: paper.config(t, 1) for t in paper.trainings if "detectors" in t.needed_for}
    better = cfgs["rdsnet_better"]
    assert better.MODEL.RETINANET.BBOX_REG_LOSS_TYPE == "giou"
    assert better.MODEL.RDSNET.ASSIGNMENT.NAME == "atss"
    if family == "lite":
        plainer, coarser = cfgs["rdsnet_plainer"].MODEL, cfgs["rdsnet_coarser"].MODEL
        assert plainer.RDSNET.ASSIGNMENT.NAME == "iou"
        assert plainer.ANCHOR_GENERATOR.SIZES == sizes
        assert plainer.ANCHOR_GENERATOR.ASPECT_RATIOS == [[0.5, 1.0, 2.0]]
        assert coarser.RDSNET.PIXEL_STREAM.IN_FEATURES == ["p3", "p4", "p5"]
    else:
        assert better.MODEL.ANCHOR_GENERATOR.SIZES[0] == [64]
        finer = cfgs["rdsnet_finer"].MODEL
        assert finer.RDSNET.PIXEL_STREAM.IN_FEATURES[0] == "p2"
        assert finer.ANCHOR_GENERATOR.SIZES == sizes


def test_all_models_see_the_same_data(paper):
    for training in paper.trainings:
        cfg = paper.config(training, 1)
        assert cfg.MODEL.RETINANET.NUM_CLASSES == cfg.MODEL.ROI_HEADS.NUM_CLASSES == 5
        assert cfg.INPUT.MIN_SIZE_TEST == training.scaled(256)
        assert cfg.DATASETS.TRAIN and cfg.DATASETS.TEST
    small = next(t for t in paper.trainings if t.name == "rdsnet_600")
    assert paper.config(small, 1).INPUT.MIN_SIZE_TEST == 192


def test_a_budget_is_divided_among_all_trainings(tmp_path, shapes):
    paper = make(tmp_path, shapes, iterations=None, budget=1.0, tables=["table3"])
    paper.decide_on_data()
    paper.seconds_per_iteration = dict.fromkeys([t.name for t in paper.trainings], 0.5)
    paper.decide_on_iterations()
    assert paper.iterations == int(3600 * 0.8 / (4 * 2 * 0.5))  # 4 trainings, 2 seeds
    assert paper.hours(paper.trainings[0]) == pytest.approx(0.1)
    paper.iterations, paper.budget = None, 0.01
    with pytest.raises(ValueError, match="would have 7 iterations each. Give at least 0.028 hours"):
        paper.decide_on_iterations()


def test_what_was_decided_is_kept(paper, tmp_path, shapes):
    paper.seconds_per_iteration = {"rdsnet": 0.5}
    paper.keep()
    again = make(tmp_path, shapes, iterations=None)
    assert again.take_up()
    assert again.iterations == 40 and again.seconds_per_iteration == {"rdsnet": 0.5}
    training = paper.trainings[0]
    assert again.config(training, 1).dump() == paper.config(training, 1).dump()
    read = Paper.read(paper.folder, ["table4"])
    assert read.config(training, 1).dump() == paper.config(training, 1).dump()
    assert [t.name for t in read.trainings] == ["rdsnet"]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"iterations": 50}, "of another iterations: 40, not 50"),
        ({"budget": 2.0}, "of another budget: None, not 2.0"),
        ({"options": ["SEED", "3"]}, "of another options"),
    ],
)
def test_other_settings_are_refused(paper, tmp_path, shapes, other, named):
    paper.keep()
    with pytest.raises(ValueError, match=named):
        make(tmp_path, shapes, **other).take_up()


def test_more_seeds_go_on_in_the_same_folder(paper, tmp_path, shapes):
    paper.keep()
    assert make(tmp_path, shapes, seeds=[1, 2, 3]).take_up()


def test_where_a_training_stands(paper):
    training = paper.trainings[0]
    assert runs.state(paper, training, 1) == "not begun"
    folder = paper.run_folder(training, 1)
    folder.mkdir(parents=True)
    (folder / "last_checkpoint").write_text("model_0000019.pth")
    assert runs.state(paper, training, 1) == "trained to iteration 20"
    (folder / "last_checkpoint").write_text("model_final.pth")
    assert runs.state(paper, training, 1) == "trained, to be evaluated"
    (folder / "result.json").write_text(json.dumps({"analysed": ["table4", "fig1", "fig3"]}))
    assert runs.state(paper, training, 1) == "trained, without beyond, fig5"
    assert not runs.is_complete(paper, training, 1)
    paper.tables = ["table4", "fig3"]  # nothing else is asked for
    assert runs.state(paper, training, 1) == "finished" and runs.is_complete(paper, training, 1)


@pytest.mark.parametrize("code", [130, 143, -2, -15])
def test_a_run_that_a_signal_has_stopped_ends_the_command(paper, monkeypatch, code):
    """Also where it was not in its training, and Python itself was ended by the signal."""
    begun = []
    monkeypatch.setattr(runs, "_launch", lambda *run: (begun.append(run), (code, None))[1])
    with pytest.raises(KeyboardInterrupt):
        runs.run_all(paper)
    assert len(begun) == 1


def test_a_killed_training_is_said_to_be_killed(paper, monkeypatch, tmp_path):
    paper.tables, paper.seeds = ["fig5"], [1]
    monkeypatch.setattr(runs, "_launch", lambda *run: (-9, tmp_path / "log"))
    with pytest.raises(ValueError, match="seed 1: killed .SIGKILL.: the machine may have run out"):
        runs.run_all(paper, lambda text: None)


def test_a_failed_training_is_named_with_its_last_line_and_others_go_on(paper, monkeypatch):
    begun = []

    def launch(paper, training, seed):
        begun.append(training.name)
        log = paper.folder / f"{training.name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("Traceback\nValueError: too bad\n")
        return (1 if training.name == "yolact" else 0), log

    monkeypatch.setattr(runs, "_launch", launch)
    paper.tables, paper.seeds = ["table3"], [1]
    said = []
    with pytest.raises(ValueError, match="1 trainings failed:\nyolact, seed 1: ValueError: too b"):
        runs.run_all(paper, said.append)
    assert begun == ["yolact", "corr", "corr_te", "rdsnet_s"]
    assert said[0].startswith("yolact, seed 1: FAILED, see")
