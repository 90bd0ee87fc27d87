"""What `rdsnet train --data` decides from the data."""

import json
import shlex
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from helpers.data_statistics import statistics
from PIL import Image

import rdsnet
from rdsnet.cli import main
from rdsnet.commands.arguments import AUGMENTATIONS
from rdsnet.config import get_cfg
from rdsnet.data.augmentations import PRESETS
from rdsnet.data.train_loader import _build_sampler
from rdsnet.training.anchor_fit import best_ious, fit_anchors
from rdsnet.training.base import MODELS, base_config
from rdsnet.training.own_data import dataset_names
from rdsnet.training.settings import Wishes, derive_settings


def random_boxes(count, low, high, extent, seed=0):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, extent - high, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(low, high, (count, 2))], axis=1)


def settings(data, config="small", val=None, **wishes):
    return derive_settings(base_config(config)[1], data, val, Wishes(**wishes)).options


def test_ordinary_photographs_keep_the_configs_input_and_anchors():
    data = statistics([(480, 640)] * 100, random_boxes(400, 60, 300, 480))
    options = settings(data)
    del options["INPUT.AUGMENTATION"]  # made-up boxes lie in every direction, seen 60 times
    assert not any(key.startswith("INPUT.") for key in options)
    assert "MODEL.ANCHOR_GENERATOR.SIZES" not in options
    assert "TEST.DETECTIONS_PER_IMAGE" not in options
    assert options["MODEL.RETINANET.NUM_CLASSES"] == 2


SMALL_IN_SHRUNK = [30] * 40 + [100] * 60  # px of 640, which become 256
SMALL_IN_CROPS = [13] * 40 + [24] * 60


@pytest.mark.parametrize(
    ("sizes", "first"),
    [([60], "p3"), ([30], "p2"), (SMALL_IN_SHRUNK, "p3"), ([13], "p2"), (SMALL_IN_CROPS, "p2")],
)
def test_lites_detector_begins_where_the_objects_are(sizes, first):
    """Photographs shrunk to two fifths, and images of small objects at their own resolution."""
    sizes = np.resize(sizes, 1000).astype(float)
    corners = np.random.default_rng(0).uniform(0, 500, (1000, 2))
    boxes = np.concatenate([corners, corners + sizes[:, None]], axis=1)
    data = statistics([(640, 640)] * 50, boxes)
    options = settings(data, "lite", augment="light")
    assert ("INPUT.CROP.ENABLED" in options) == (max(sizes) < 30)
    cfg = base_config("lite")[1]
    for key, value in options.items():
        cfg.merge_from_list([key, value])
    assert cfg.MODEL.RETINANET.IN_FEATURES[0] == first
    assert len(cfg.MODEL.RETINANET.IN_FEATURES) == len(cfg.MODEL.ANCHOR_GENERATOR.SIZES)
    # what weights have learnt stays
    learnt = derive_settings(base_config("lite")[1], data, None, Wishes(), learnt_anchors=True)
    assert "MODEL.RETINANET.IN_FEATURES" not in learnt.options


def test_the_rate_of_a_pretrained_backbone_is_said():
    data = statistics([(300, 300)] * 25, random_boxes(100, 30, 90, 300))
    for name, weights, factor in (
        ("lite", "lite.pth", True),
        ("lite", "", False),
        ("small", "small.pth", False),
    ):
        cfg = base_config(name)[1]
        cfg.MODEL.WEIGHTS = weights
        text = dict(derive_settings(cfg, data, None, Wishes()).notes)["Schedule"]
        assert "learning rate 0.001 (AdamW)" in text
        assert (", 0.25 of it for the backbone" in text) == factor


def test_large_images_with_small_objects_are_trained_on_crops():
    data = statistics([(2000, 3000)] * 50, random_boxes(5000, 15, 40, 2000))
    options = settings(data)
    assert options["INPUT.MIN_SIZE_TRAIN"] == (0,) and options["INPUT.MIN_SIZE_TEST"] == 0
    # All sides that are padded to 256, so that training sees every width of padding.
    assert options["INPUT.CROP.ENABLED"] and options["INPUT.CROP.SIZE"] == [225, 256]
    assert options["INPUT.CROP.TYPE"] == "absolute_range"
    assert options["TEST.DETECTIONS_PER_IMAGE"] == 150  # 100 objects in an image, and a margin
    # 2000 px are brought to 800: objects of 15 px to 6. Four of them are in 490 x 490 px.
    assert settings(data, "R_50")["INPUT.CROP.SIZE"] == [481, 512]


def test_dense_small_objects_are_trained_on_smaller_crops_for_longer():
    """In the same pixels: four times the iterations of a quarter of the area."""
    boxes = random_boxes(8000, 8, 40, 512)
    dense = statistics([(512, 512)] * 40, boxes)
    options = settings(dense)
    assert options["INPUT.CROP.SIZE"] == [97, 128]
    assert options["SOLVER.MAX_ITER"] == 4 * 1500
    assert settings(dense, iterations=7)["SOLVER.MAX_ITER"] == 7
    assert settings(dense, epochs=2)["SOLVER.MAX_ITER"] == 2 * 40 / 4
    # objects of which a crop of 128 px would cut most
    large = statistics([(512, 512)] * 40, np.concatenate([boxes, random_boxes(800, 70, 90, 512)]))
    assert settings(large)["INPUT.CROP.SIZE"][1] in (160, 192)
    # a third of an object in 128 x 128 px, four in 443 x 443
    sparse = statistics([(512, 512)] * 40, random_boxes(40 * 5, 8, 25, 512))
    assert settings(sparse)["INPUT.CROP.SIZE"] == [225, 256]
    assert settings(sparse)["SOLVER.MAX_ITER"] == 1500
    # Of 512 px, 1,500 x 4 crops of 256 px show every pixel of 40 images 37 times.
    assert settings(sparse)["INPUT.AUGMENTATION"] == "microscopy"
    sparse = statistics([(512, 512)] * 80, random_boxes(80 * 5, 8, 25, 512))
    assert "INPUT.AUGMENTATION" not in settings(sparse)


def test_photographs_whose_large_objects_fit_into_no_crop_are_shrunk():
    """640 px are brought to 256: 20 px to 8. In a crop of 256 px there is no room round 200."""
    small, large = random_boxes(30, 15, 25, 640), random_boxes(70, 150, 300, 640)
    data = statistics([(640, 640)] * 25, np.concatenate([small, large]))
    found = derive_settings(base_config("small")[1], data, None, Wishes())
    assert "INPUT.CROP.ENABLED" not in found.options
    assert found.options["INPUT.MIN_SIZE_TRAIN"] == (225, 256)
    (text,) = [text for topic, text in found.notes if topic == "Input"]
    assert "30% of the objects shrink below 12 px" in text and "more than 256" in text
    mostly_small = np.concatenate([random_boxes(70, 15, 25, 640), large[:30]])
    assert settings(statistics([(640, 640)] * 25, mostly_small))["INPUT.CROP.ENABLED"]


@pytest.mark.parametrize("size, padded", [((600, 600), False), ((480, 640), True)])
def test_images_that_would_never_be_padded_are_trained_at_several_sizes(size, padded):
    """600 x 600 px become 256 x 256 for the small model, 480 x 640 become 256 x 341."""
    options = settings(statistics([size] * 100, random_boxes(400, 60, 300, 480)))
    varied = {
        "INPUT.MIN_SIZE_TRAIN": (225, 256),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
    }
    found = {key: value for key, value in options.items() if key.startswith("INPUT.MIN")}
    assert found == ({} if padded else varied)


def test_iou_with_anchors_is_that_of_the_anchor_at_the_nearest_place():
    """Against all anchors of a grid, one by one."""
    boxes = random_boxes(20, 5, 60, 128)
    sizes, ratios, strides = [[16.0, 20.0], [40.0]], [0.5, 1.0], [8, 16]
    expected = np.zeros(len(boxes))
    for level, stride in zip(sizes, strides, strict=True):
        for cx in np.arange(0, 160, stride):
            for cy in np.arange(0, 160, stride):
                for size in level:
                    for ratio in ratios:
                        w, h = size / ratio**0.5, size * ratio**0.5
                        x1, y1, x2, y2 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
                        for n, (a, b, c, d) in enumerate(boxes):
                            common = max(0, min(x2, c) - max(x1, a))
                            common *= max(0, min(y2, d) - max(y1, b))
                            union = w * h + (c - a) * (d - b) - common
                            expected[n] = max(expected[n], common / union)
    np.testing.assert_allclose(best_ious(boxes, sizes, ratios, strides, 0.0), expected)


def test_anchors_move_towards_objects_that_they_miss():
    cfg = base_config("small")[1]  # from 16 px
    tiny = fit_anchors(cfg, random_boxes(500, 8, 11, 256))
    assert tiny.factor < 1 and tiny.best_coverage > tiny.coverage
    assert tiny.best_sizes[0][0] == pytest.approx(16 * tiny.factor, abs=1e-3)
    assert tiny.best_sizes[0][0] >= 8
    huge = fit_anchors(base_config("R_50")[1], random_boxes(500, 1500, 2500, 4000))
    assert huge.factor > 1 and huge.best_coverage > huge.coverage
    usual = fit_anchors(cfg, random_boxes(500, 20, 200, 512))
    assert usual.factor == 1 and usual.best_coverage == usual.coverage


def test_schedule_follows_the_size_of_the_data():
    few = statistics([(256, 256)] * 40, random_boxes(40, 30, 90, 256))
    many = statistics([(256, 256)] * 4000, random_boxes(4000, 30, 90, 256))
    assert settings(few)["SOLVER.MAX_ITER"] == 1500
    options = settings(many)
    assert options["SOLVER.MAX_ITER"] == 12 * 4000 / 4
    assert options["SOLVER.STEPS"] == (9600, 11400)  # 80 % and 95 %, as in the config
    assert settings(many, epochs=2)["SOLVER.MAX_ITER"] == 2000
    assert settings(many, iterations=7)["SOLVER.MAX_ITER"] == 7
    assert settings(many, iterations=7)["SOLVER.WARMUP_ITERS"] == 0
    # Images without objects are not trained on.
    half = statistics([(256, 256)] * 4000, random_boxes(2000, 30, 90, 256))
    assert settings(half)["SOLVER.MAX_ITER"] == 6000


def test_learning_rate_follows_the_batch_size():
    data = statistics([(600, 800)] * 40, random_boxes(40, 60, 190, 600))
    options = settings(data, "R_50", batch_size=16)  # SGD, 0.005 for 8
    assert (options["SOLVER.IMS_PER_BATCH"], options["SOLVER.BASE_LR"]) == (16, 0.01)
    assert settings(data, "R_50")["SOLVER.IMS_PER_BATCH"] == 2  # the paper's 2 per GPU
    assert settings(data, "R_50", num_gpus=4)["SOLVER.BASE_LR"] == 0.005
    options = settings(data, "small", batch_size=16)  # AdamW, 0.001 for 4
    assert options["SOLVER.BASE_LR"] == pytest.approx(0.002)


def test_evaluation_keeps_the_best_and_may_stop():
    data = statistics([(256, 256)] * 40, random_boxes(40, 30, 90, 256))
    without = settings(data)
    assert "TEST.EVAL_PERIOD" not in without and "TEST.BEST_METRIC" not in without
    assert "MODEL.RDSNET.FIT_MASK_THRESHOLD" not in without
    options = settings(data, val=data, patience=5, ema=True)
    assert options["TEST.EVAL_PERIOD"] == 75 and options["TEST.PATIENCE"] == 5
    assert options["TEST.BEST_METRIC"] == "segm/AP" and options["SOLVER.EMA.ENABLED"]
    assert options["MODEL.RDSNET.MBRM.FIT.AFTER_TRAINING"]
    assert options["MODEL.RDSNET.FIT_MASK_THRESHOLD"]
    assert options["MODEL.RDSNET.FIT_SCORE_THRESHOLDS"]


PROJECTS = sorted(map(str, Path(rdsnet.__file__).parents[1].glob("projects/*/configs/*.yaml")))


def test_options_are_valid_for_every_model():
    """Each option exists in the config and has the right type."""
    data = statistics([(2000, 3000)] * 50, random_boxes(5000, 15, 40, 2000))
    assert len(PROJECTS) > 4
    for name in [*MODELS, *PROJECTS]:
        _, cfg = base_config(name)
        derived = derive_settings(cfg, data, data, Wishes(patience=3, ema=True))
        cfg.merge_from_list(derived.opts())


def test_data_without_objects_is_refused():
    with pytest.raises(ValueError, match="no object"):
        settings(statistics([(9, 9)], np.zeros((0, 4))))


def test_names_of_datasets_come_from_the_files():
    assert dataset_names("/a/nuclei/train.json", "/a/nuclei/val.json") == (
        "nuclei_train",
        "nuclei_val",
    )
    assert dataset_names("/a/my data/all.json", None) == ("my_data_all", "my_data_val")
    assert dataset_names("/a/b/x.json", "/c/b/x.json") == ("b_x", "b_x_val")


@pytest.fixture
def small_data(tmp_path):
    """30 images with one object each: (json, folder)."""
    folder = tmp_path / "images"
    folder.mkdir()
    images, annotations = [], []
    for n in range(30):
        Image.new("RGB", (64, 64)).save(folder / f"{n}.png")
        images.append({"id": n, "file_name": f"{n}.png", "height": 64, "width": 64})
        box = [10, 10, 30, 30]
        polygon = [10, 10, 40, 10, 40, 40, 10, 40]
        entry = {"id": n + 1, "image_id": n, "category_id": 3, "iscrowd": 0, "area": 900}
        annotations.append({**entry, "bbox": box, "segmentation": [polygon]})
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 3, "name": "square"}]
    (tmp_path / "all.json").write_text(json.dumps(content))
    return str(tmp_path / "all.json"), str(folder)


@pytest.fixture
def started(monkeypatch):
    """Arguments that runs would have been started with."""
    runs = []
    monkeypatch.setattr("rdsnet.training.run", runs.append)
    return runs


def test_printed_command_has_the_options_of_the_run(small_data, started, tmp_path, capsys):
    words = ["train", "--data", *small_data, "--output", str(tmp_path / "out"), "--epochs", "2"]
    assert main([*words, "--config", "small", "--device", "cpu", "SEED", "5"]) == 0
    (args,) = started
    output = capsys.readouterr().out
    line = next(x for x in output.splitlines() if x.startswith("python train_net.py"))
    words = shlex.split(line)
    assert words[2:5] == ["--config-file", args.config_file, "DATASETS.COCO_FILES"]
    assert words[4:] == args.opts and args.opts[-2:] == ["SEED", "5"]
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    assert cfg.MODEL.DEVICE == "cpu" and cfg.OUTPUT_DIR == str(tmp_path / "out")
    assert "MODEL.DEVICE cpu, SEED 5, as given" in output
    # A tenth is held out, and said so.
    assert "3 of the 30 images" in output
    (_, train, _), (_, val, _) = cfg.DATASETS.COCO_FILES
    ids = [{i["id"] for i in json.load(open(path))["images"]} for path in (train, val)]
    assert len(ids[1]) == 3 and ids[0] | ids[1] == set(range(30)) and not ids[0] & ids[1]


def test_augmentation_may_be_asked_for(small_data, started, tmp_path, capsys):
    words = ["train", "--data", *small_data, "--output", str(tmp_path / "out")]
    assert main([*words, "--augment", "aerial"]) == 0
    options = dict(zip(started[0].opts[::2], started[0].opts[1::2], strict=True))
    assert options["INPUT.AUGMENTATION"] == "aerial"
    assert '"aerial", as asked for' in capsys.readouterr().out
    assert AUGMENTATIONS == tuple(PRESETS)


def test_images_with_rare_classes_are_shown_more_often():
    # 100 images with an object of class 0 each, two with one of class 1, eight with one of class 2.
    index = np.array([*range(100), 7, 7, 9, *range(8)])
    classes = np.array([0] * 100 + [1] * 3 + [2] * 8)
    data = statistics([(480, 640)] * 100, random_boxes(111, 60, 300, 480), index, classes=3)
    data = replace(data, classes=classes)
    assert data.images_per_class.tolist() == [100, 2, 8]
    cfg = base_config("small")[1]
    settings = derive_settings(cfg, data, None, Wishes())
    text = dict(settings.notes)["Rare"]
    assert "class 1 (2 of 100 images, 1.6 times as often)" in text and "class 2" not in text
    run = cfg.clone()
    run.merge_from_list(settings.opts())
    dataset = [
        {"annotations": [{"category_id": int(k)} for k in classes[index == image]]}
        for image in range(100)
    ]
    shown = np.bincount(list(islice(iter(_build_sampler(run, dataset, 0)), 20_000)), minlength=100)
    others = np.delete(shown, [7, 9]).mean()
    np.testing.assert_allclose(shown[[7, 9]] / others, (0.05 / 0.02) ** 0.5, rtol=0.1)
    # Balanced data, and another sampler in the config, stay as they are.
    for k, config in ((0, cfg), (1, run)):
        balanced = replace(data, classes=np.zeros_like(classes)) if k == 0 else data
        options = derive_settings(config, balanced, None, Wishes()).options
        assert "DATALOADER.SAMPLER_TRAIN" not in options


@pytest.mark.parametrize(
    ("has", "amp", "text"),
    [
        ({"AVX512_BF16"}, "True", "bf16, the processor has AVX512_BF16"),
        (set(), "False", "float32, the processor has no instructions for bfloat16"),
    ],
)
def test_training_takes_bfloat16_where_the_processor_does(
    has, amp, text, small_data, started, tmp_path, capsys, monkeypatch
):
    capable = "rdsnet.modeling.precision.device_capabilities"
    monkeypatch.setattr(capable, lambda device: frozenset(has))
    words = ["train", "--data", *small_data, "--output", str(tmp_path / "out")]
    assert main([*words, "--device", "cpu"]) == 0
    options = dict(zip(started[0].opts[::2], started[0].opts[1::2], strict=True))
    assert options["SOLVER.AMP.ENABLED"] == amp and text in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(capable, lambda device: frozenset({"bfloat16", "float16"}))
        cfg = base_config("small")[1].clone()
        cfg.MODEL.DEVICE = "cuda"
        data = statistics([(480, 640)] * 9, random_boxes(40, 60, 300, 480))
        assert "SOLVER.AMP.ENABLED" not in derive_settings(cfg, data, None, Wishes()).options


def test_without_val_nothing_is_evaluated(small_data, started, tmp_path, capsys):
    words = ["train", "--data", *small_data, "--output", str(tmp_path / "out"), "--no-val"]
    assert main(words) == 0
    assert "the model is not evaluated" in capsys.readouterr().out
    options = dict(zip(started[0].opts[::2], started[0].opts[1::2], strict=True))
    assert options["DATASETS.TEST"] == "()" and "TEST.EVAL_PERIOD" not in options


def test_config_may_be_any_file(small_data, started, tmp_path):
    config = "projects/AuthorsCompat/configs/rdsnet_R_50_FPN_core.yaml"
    path = str(Path(rdsnet.__file__).parents[1] / config)
    words = ["train", "--data", *small_data, "--output", str(tmp_path / "out"), "--config", path]
    assert main(words) == 0
    assert started[0].config_file == path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data ANNOTATIONS IMAGES"),
        (["--config-file", "f.yaml", "--epochs", "3"], "--epochs can only be given together"),
        (["--data", "a", "b", "--config-file", "f"], "not with --config-file"),
        (["--data", "a", "b", "--no-val", "--val", "c", "d"], "contradict"),
        (["--data", "none.json", "b"], "none.json does not exist"),
        (["--data", "a", "b", "--config", "huge"], "small, R_50, R_101"),
    ],
)
def test_mistakes_are_explained(words, message, started, capsys):
    assert main(["train", *words]) == 2
    assert message in capsys.readouterr().err and not started


def test_bad_data_and_finished_runs_are_refused(small_data, started, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["train", "--data", *small_data, "--output", str(out)]
    out.mkdir()
    (out / "last_checkpoint").write_text("model_final.pth")
    assert main(words) == 2
    assert "Add --resume" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    content = json.load(open(small_data[0]))
    content["annotations"][4]["category_id"] = 99
    open(small_data[0], "w").write(json.dumps(content))
    assert main([*words, "--resume"]) == 2
    assert "'category_id' is 99" in capsys.readouterr().err
