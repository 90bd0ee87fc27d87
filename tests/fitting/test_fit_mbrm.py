"""Fitting MBRM: profiles collected once, the kernel that they give, what is written."""

import json
import math

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from helpers.rounding import gamma

from rdsnet import get_cfg
from rdsnet.cli import main
from rdsnet.data.datasets import register_coco_files
from rdsnet.data.shapes import make_shapes_dataset
from rdsnet.fitting import fit as fitting
from rdsnet.fitting import profiles as profiling
from rdsnet.fitting import study
from rdsnet.fitting.profiles import (
    ImageProfiles,
    ObjectProfiles,
    PackedProfiles,
    collect_profiles,
    match_detections,
)
from rdsnet.modeling import MBRM

EDGES_FITTED = dict(MAX_ITER=150, OBJECTS_PER_BATCH=64, BASE_LR=0.1)


def synthetic_image(image_id, count=12, seed=0, height=70, width=90):
    """Detections of soft rectangles: boxes off by about 1.5 px, profiles that show the edges."""
    generator = torch.Generator().manual_seed(1000 * seed + image_id)
    low = torch.randint(2, 40, (count, 2), generator=generator).float()
    gt = torch.cat([low, low + torch.randint(6, 28, (count, 2), generator=generator)], 1)
    boxes = gt + 1.5 * torch.randn(count, 4, generator=generator)
    gt[0] = torch.nan  # a detection that has found nothing
    packed = []
    for axis, length in ((0, width), (1, height)):
        centre = torch.arange(length) + 0.5
        truth = gt.nan_to_num(20)
        rise = ((centre - truth[:, axis, None]) / 0.7).sigmoid()
        fall = ((truth[:, 2 + axis, None] - centre) / 0.7).sigmoid()
        start = (boxes[:, axis] - 3).long().clamp(min=0)
        end = (boxes[:, 2 + axis] + 3).long().clamp(max=length)
        inside = (torch.arange(length) >= start[:, None]) & (torch.arange(length) < end[:, None])
        packed.append(PackedProfiles.pack(rise * fall * inside, start, end))
    scores = torch.linspace(0.9, 0.2, count)
    classes = torch.arange(count) % 2
    return ImageProfiles(image_id, (height, width), boxes, scores, classes, gt, *packed)


@pytest.fixture
def objects():
    sizes = [(70, 90), (66, 68), (90, 70)]
    return ObjectProfiles([synthetic_image(i, height=h, width=w) for i, (h, w) in enumerate(sizes)])


def schedule(**keys):
    fit = get_cfg().MODEL.RDSNET.MBRM.FIT
    fit.update(keys)
    return fit


def test_a_batch_has_the_loss_of_its_objects_in_their_whole_images(objects):
    mbrm = MBRM(gamma=0.15)
    index = torch.tensor([0, 5, 32, 12, 5, 20])  # of all three images
    columns, rows, boxes, gt, sizes = objects.batch(index)
    assert columns.shape == (6, 90) and rows.shape == (6, 90)
    loss, reached = mbrm.loss(columns, rows, boxes, gt, sizes)
    total = edges = 0
    for n in index.tolist():
        image = synthetic_image(n // 11, height=(70, 66, 90)[n // 11], width=(90, 68, 70)[n // 11])
        one = slice(n % 11 + 1, n % 11 + 2)  # the first detection has no object
        whole, count = mbrm.loss(
            image.column_maxima()[one],
            image.row_maxima()[one],
            image.boxes[one],
            image.gt_boxes[one],
        )
        total, edges = total + whole * count, edges + count
    assert reached == edges
    assert loss.item() == pytest.approx((total / edges).item(), rel=gamma(int(edges) + 100))


def test_packed_profiles_are_the_dense_ones():
    generator = torch.Generator().manual_seed(0)
    starts, ends = torch.tensor([0, 4, 6, 9]), torch.tensor([3, 10, 6, 10])
    dense = torch.rand(4, 10, generator=generator)
    index = torch.arange(10)
    dense[(index < starts[:, None]) | (index >= ends[:, None])] = 0
    packed = PackedProfiles.pack(dense, starts, ends)
    assert len(packed.values) == 3 + 6 + 0 + 1
    assert torch.equal(packed.dense(torch.arange(4), 10), dense)
    longer = packed.dense(torch.tensor([3, 1]), 12)
    assert torch.equal(longer[:, :10], dense[[3, 1]]) and (longer[:, 10:] == 0).all()
    twice = PackedProfiles.cat([packed, packed])
    assert torch.equal(twice.dense(torch.tensor([5]), 10), dense[1:2])


def test_detections_find_the_object_of_their_class_once_and_the_best_first():
    gt_boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 9],  # the first object
            [0, 0, 10, 10],  # taken
            [20, 0, 30, 10],  # another class
            [20, 0, 30, 6],  # the second object
            [40, 40, 50, 50],  # nothing there
        ]
    )
    classes, gt_classes = torch.tensor([0, 0, 0, 1, 0]), torch.tensor([0, 1])
    assert match_detections(boxes, classes, gt_boxes, gt_classes).tolist() == [0, -1, -1, 1, -1]
    assert match_detections(boxes, classes, gt_boxes[:0], gt_classes[:0]).tolist() == [-1] * 5
    assert match_detections(boxes[:0], classes[:0], gt_boxes, gt_classes).tolist() == []


def test_fitting_from_zeros_finds_the_edges(objects):
    mbrm = MBRM()
    fit = fitting.fit_kernel(mbrm, objects, schedule(**EDGES_FITTED))
    assert len(objects) == 33 and fit.edges == 132
    # Below ln 2 a true edge is more probable than all other pixels together. Without the masks it
    # is not, nor by the kernel that was made for others.
    assert fit.loss < math.log(2) < fit.loss_initial < fit.loss_prior
    weight = mbrm.weight.flatten()
    assert weight[:4].sum() < 0 < weight[4:].sum()  # a rise of the profile
    unseen = synthetic_image(0, count=40, seed=9)
    exact = []
    for one in (mbrm, MBRM()):
        refined = one(unseen.column_maxima(), unseen.row_maxima(), unseen.boxes)
        exact.append((refined == unseen.gt_boxes)[1:].float().mean())
    assert exact[0] > 0.5 and exact[0] > exact[1]


def test_an_interrupted_fit_goes_on_to_the_same_kernel(objects, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "CHECKPOINT_PERIOD", 10)
    keys = schedule(MAX_ITER=40, OBJECTS_PER_BATCH=8)
    uninterrupted = MBRM()
    fitting.fit_kernel(uninterrupted, objects, keys)
    calls, batch_loss = [], fitting._batch_loss

    def interrupt(mbrm, objects, index):
        if len(index) == 8:
            calls.append(index)
            if len(calls) == 27:
                raise KeyboardInterrupt
        return batch_loss(mbrm, objects, index)

    monkeypatch.setattr(fitting, "_batch_loss", interrupt)
    state = tmp_path / "unfinished.pth"
    with pytest.raises(KeyboardInterrupt):
        fitting.fit_kernel(MBRM(), objects, keys, state_file=state)
    assert state.is_file()
    resumed = MBRM()
    fitting.fit_kernel(resumed, objects, keys, state_file=state)
    assert len(calls) == 27 + 20  # 26 steps, of which 20 were kept
    assert torch.equal(resumed.weight, uninterrupted.weight)
    assert torch.equal(resumed.bias, uninterrupted.bias) and not state.exists()


def test_the_state_of_another_fit_is_not_taken_up(objects, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "CHECKPOINT_PERIOD", 5)
    state = tmp_path / "unfinished.pth"
    monkeypatch.setattr(fitting.Path, "unlink", lambda *args, **kwargs: None)  # keep the state
    fitting.fit_kernel(MBRM(), objects, schedule(MAX_ITER=5), state_file=state)
    other, fresh = MBRM(gamma=0.1), MBRM(gamma=0.1)
    fitting.fit_kernel(other, objects, schedule(MAX_ITER=5), state_file=state)
    fitting.fit_kernel(fresh, objects, schedule(MAX_ITER=5))
    assert torch.equal(other.weight, fresh.weight)


def test_edge_spread_is_the_standard_deviation_of_normal_errors():
    images = [synthetic_image(i, count=200) for i in range(5)]
    generator, edges = torch.Generator().manual_seed(0), 5 * 199 * 4
    for image in images:
        image.boxes = torch.tensor([[10.0, 10, 60, 60]]).repeat(200, 1)
        errors = torch.randn(199, 4, generator=generator)
        image.gt_boxes[1:] = image.boxes[1:] + 50 * 0.03 * errors
    # A standard deviation from n numbers is itself off by 1 / sqrt(2 n); five times that never is.
    within = 5 / math.sqrt(2 * edges)
    assert fitting.edge_spread(ObjectProfiles(images)) == pytest.approx(0.03, rel=within)


def test_a_model_that_finds_nothing_cannot_be_fitted_to():
    image = synthetic_image(0)
    image.gt_boxes[:] = torch.nan
    with pytest.raises(ValueError, match="none of the 12 detections in 1 images.*MODEL.WEIGHTS"):
        ObjectProfiles([image])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A config of a small model with random weights that detects something, and shapes."""
    folder = tmp_path_factory.mktemp("shapes")
    make_shapes_dataset(folder, num_train=5, num_val=2)
    cfg = get_cfg()
    cfg.merge_from_file("configs/small/rdsnet_small_shapes.yaml")
    for name in ("train", "val"):
        json_file = str(folder / f"{name}.json")
        cfg.DATASETS.COCO_FILES.append([f"fit_{name}", json_file, str(folder / name)])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("fit_train",), ("fit_val",)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RETINANET.NUM_CLASSES = 5
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.01
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 96, 128
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    cfg.DATALOADER.NUM_WORKERS = 0
    register_coco_files(cfg)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    cfg.MODEL.RDSNET.MBRM.FIT.MAX_ITER = 3
    return cfg


def with_output(cfg, folder, **keys):
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(folder)
    cfg.MODEL.RDSNET.MBRM.update(keys)
    return cfg


def test_profiles_are_what_mbrm_sees_at_inference(shapes, tmp_path):
    model = fitting.load_unrefined_model(shapes)
    images = collect_profiles(shapes, model, "fit_val", tmp_path)
    refined_model = build_model(shapes).eval()
    DetectionCheckpointer(refined_model).load(shapes.MODEL.WEIGHTS)
    loader = profiling.build_detection_test_loader(
        DatasetCatalog.get("fit_val"), mapper=profiling.build_mapper(shapes, is_train=False)
    )
    assert [len(image.boxes) for image in images] == [20, 20]
    for image, inputs in zip(images, loader, strict=True):
        with torch.no_grad():
            found = refined_model(inputs)[0]["instances"]
        assert image.image_id == inputs[0]["image_id"] and image.size == found.image_size
        (refined,) = study.refine([image], MBRM())
        torch.testing.assert_close(image.boxes, found.regressed_boxes.tensor)
        torch.testing.assert_close(refined.boxes, found.pred_boxes.tensor)
        assert torch.equal(refined.scores, found.scores)


def test_collection_runs_the_model_once_and_goes_on_after_an_interruption(
    shapes, tmp_path, monkeypatch
):
    monkeypatch.setattr(profiling, "IMAGES_PER_FILE", 2)
    model = fitting.load_unrefined_model(shapes)
    runs, inference = [], model.inference

    def count(*args):
        runs.append(args)
        if len(runs) == 4:
            raise KeyboardInterrupt
        return inference(*args)

    monkeypatch.setattr(model, "inference", count)
    with pytest.raises(KeyboardInterrupt):
        collect_profiles(shapes, model, "fit_train", tmp_path)
    images = collect_profiles(shapes, model, "fit_train", tmp_path)
    assert len(runs) == 4 + 3 and len(images) == 5  # three images; the first two were kept
    again = collect_profiles(shapes, model, "fit_train", tmp_path)
    assert len(runs) == 7
    for a, b in zip(images, again, strict=True):
        assert a.image_id == b.image_id and torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.column_maxima(), b.column_maxima())
        assert torch.equal(a.row_maxima(), b.row_maxima())
    assert not model.training and model.dense_masks
    with torch.no_grad():
        model.object_stream.head.bbox_pred.bias.add_(0.1)
    collect_profiles(shapes, model, "fit_train", tmp_path)
    assert len(runs) == 12  # other weights: all anew


def test_a_sample_of_the_images_is_always_the_same(shapes, tmp_path):
    model = fitting.load_unrefined_model(shapes)
    ids = [i.image_id for i in collect_profiles(shapes, model, "fit_train", tmp_path, max_images=2)]
    shown = collect_profiles(shapes, model, "fit_train", tmp_path / "other", max_images=2)
    assert len(set(ids)) == 2 and [i.image_id for i in shown] == ids


@pytest.fixture
def with_synthetic_profiles(monkeypatch):
    """Fitting and evaluation get soft rectangles instead of what the random model detects."""

    def collect(cfg, model, dataset_name, folder, max_images=-1):
        ids = [record["image_id"] for record in DatasetCatalog.get(dataset_name)]
        return [synthetic_image(image_id) for image_id in ids]

    monkeypatch.setattr(fitting, "collect_profiles", collect)
    monkeypatch.setattr(study, "collect_profiles", collect)


def test_the_checkpoint_has_the_new_kernel_and_all_else_unchanged(
    shapes, tmp_path, with_synthetic_profiles
):
    cfg = with_output(shapes, tmp_path, GAMMA=0.1, RADIUS=2, METHOD="none")
    mbrm, fit = fitting.fit_mbrm(cfg)
    written = get_cfg()
    written.merge_from_file(str(tmp_path / "mbrm" / "config.yaml"))
    model = build_model(written).eval()
    DetectionCheckpointer(model).load(written.MODEL.WEIGHTS)
    assert (model.mbrm.gamma, model.mbrm.radius) == (0.1, 2)
    assert torch.equal(model.mbrm.weight, mbrm.weight) and mbrm.weight.abs().sum() > 0
    before = torch.load(shapes.MODEL.WEIGHTS, weights_only=True)["model"]
    after = model.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= {"mbrm.weight", "mbrm.bias"}
    report = json.loads((tmp_path / "mbrm" / "kernel.json").read_text())
    assert report["weight"] == pytest.approx(mbrm.weight.flatten().tolist(), abs=1e-4)
    assert report["edges_within_reach"] == fit.edges_within_reach <= report["edges"]
    assert not (tmp_path / "mbrm" / "unfinished.pth").exists()


def test_sweep_has_the_regressed_ap_at_gamma_0_and_a_kernel_per_radius(
    shapes, tmp_path, with_synthetic_profiles, monkeypatch
):
    fitted = []
    monkeypatch.setattr(study, "fit_kernel", lambda mbrm, objects, keys: fitted.append(mbrm.radius))
    monkeypatch.setattr(
        study.BoxAP, "__call__", lambda self, images, sizes: {"AP": images[0].boxes.sum()}
    )
    cfg = with_output(shapes, tmp_path)
    results = study.sweep(cfg, "fit_val", gammas=(0.0, 0.05, 0.2), radii=(1, 4))
    assert fitted == [1, 4] and list(results) == [1, 4]
    image = synthetic_image(DatasetCatalog.get("fit_val")[0]["image_id"])
    for radius, aps in results.items():
        assert list(aps) == [0.0, 0.05, 0.2]
        assert aps[0.0] == image.boxes.sum()
        mbrm = MBRM(0.2, radius)
        assert aps[0.2] == mbrm(image.column_maxima(), image.row_maxima(), image.boxes).sum()


def test_edge_errors_are_counted_outwards_over_detections_with_an_object():
    image = synthetic_image(0, count=3)
    boxes = image.gt_boxes + torch.tensor([0.4, -2.0, 3.0, -7.0])
    boxes[0] = 1e6  # has found nothing
    refined = study.ImageBoxes(0, boxes, image.scores, image.classes)
    errors = study.edge_errors([image], [refined])
    expected = {"error": (0.4 + 2 + 3 + 7) / 4, "exact": 25, "offset": (-0.4 + 2 + 3) / 3}
    # Boxes of up to 90 px are float32.
    assert errors == pytest.approx(expected, abs=gamma(8) * 90)


def test_command_fits_compares_sweeps_and_evaluates(
    shapes, tmp_path, with_synthetic_profiles, monkeypatch, capsys
):
    config_file = tmp_path / "config.yaml"
    config_file.write_text(with_output(shapes, tmp_path).dump())
    monkeypatch.setattr(study.sweep, "__defaults__", ((0.0, 0.05), (1, 4)))
    assert main(["fit-mbrm", "--config-file", str(config_file), "--compare", "--sweep"]) == 0
    shown = capsys.readouterr().out
    folder = tmp_path / "mbrm"
    methods = (folder / "methods-fit_val.md").read_text()
    assert methods in shown and "| direct" in methods and "MBRM, sub-pixel" in methods
    results = json.loads((folder / "sweep-fit_val.json").read_text())
    assert results["1"]["0.0"] == results["4"]["0.0"]
    for name in ("kernel.png", "sweep-fit_val.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert str(folder / "config.yaml") in shown
    written = (folder / "config.yaml").read_text()
    key = "MODEL.RDSNET.MBRM."
    command = ["eval", "--config-file", str(folder / "config.yaml")]
    assert main([*command, f"{key}METHOD", "direct"]) == 0
    assert (folder / "config.yaml").read_text() == written
    assert main([*command, f"{key}RADIUS", "2"]) == 2
    assert "not one of radius 2 (5 weights)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
        (["MODEL.WEIGHTS", "no/such.pth"], "'no/such.pth' does not exist"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
        (["MODEL.RDSNET.MBRM.GAMMA", "0.0"], "gamma and min_sigma must be positive"),
    ],
)
def test_mistakes_are_explained(shapes, tmp_path, opts, expected, capsys):
    config_file = tmp_path / "config.yaml"
    config_file.write_text(with_output(shapes, tmp_path).dump())
    assert main(["fit-mbrm", "--config-file", str(config_file), *opts]) == 2
    assert expected in capsys.readouterr().err
