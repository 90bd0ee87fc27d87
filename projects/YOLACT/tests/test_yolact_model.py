"""The whole model: masks against their definitions, sizes, configs, Detectron2's tools."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from helpers.rounding import assert_within, gamma
from torch.nn import functional as F

import rdsnet
from rdsnet.checkpoint import load_config
from rdsnet.data.shapes import make_shapes_dataset
from rdsnet.modeling import Positives
from rdsnet.modeling.cropping import expanded_windows
from rdsnet.ops import mask_targets
from rdsnet.projects.yolact import YOLACT, YOLACTFPN
from rdsnet.projects.yolact.yolact import kept_pixels
from rdsnet.training.trainer import Trainer

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = ["yolact_small_nuclei.yaml", "rdsnet_s_small_nuclei.yaml"]


def config(name, *opts):
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(str(CONFIGS / name))
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list(list(opts))
    return cfg


@pytest.fixture(scope="module", params=SMALL)
def model(request):
    """YOLACT and RDSNet_s on a fixed input of 160 px, which is 40 cells of P3's double grid."""
    torch.manual_seed(0)
    return build_model(config(request.param, "MODEL.YOLACT.INPUT_SIZE", "160"))


def image(height=100, width=120, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return {"image": torch.rand(3, height, width, generator=generator) * 255, **kwargs}


def objects(height, width, boxes, polygons=False):
    if polygons:
        masks = PolygonMasks([[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes])
    else:
        masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes):
            mask[y1:y2, x1:x2] = True
        masks = BitMasks(masks)
    return Instances(
        (height, width),
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4)),
        gt_classes=torch.arange(len(boxes)) % 3,
        gt_masks=masks,
    )


BOXES = [[10, 10, 60, 50], [30, 40, 100, 90], [70, 5, 82, 17]]
LOSSES = {"loss_cls", "loss_box_reg", "loss_mask", "loss_semantic"}


# ---------------------------------------------------------------------------- training


def test_a_mixed_batch_has_four_losses_and_gradients_everywhere(model, monkeypatch):
    batch = [
        image(instances=objects(100, 120, BOXES)),
        image(90, 150, 1, instances=objects(90, 150, BOXES[:1], polygons=True)),
        image(64, 64, 2, instances=objects(64, 64, [])),
    ]
    # So that every level has anchors that count.
    monkeypatch.setattr(model.object_stream, "negatives_per_positive", 1e4)
    losses = model.train()(batch)
    assert set(losses) == LOSSES and all(torch.isfinite(x) for x in losses.values())
    model.zero_grad()
    sum(losses.values()).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without <= {"mbrm.weight", "mbrm.bias"}  # trained on its own, afterwards


def test_without_objects_all_parameters_stay_attached(model):
    losses = model.train()([image(instances=objects(100, 120, []))])
    assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_cls"] == 0
    model.zero_grad()
    sum(losses.values()).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without <= {"mbrm.weight", "mbrm.bias"}


def test_ground_truth_is_stretched_with_its_image(model):
    own = model.ground_truth([image(instances=objects(80, 320, [[32, 10, 96, 70]]))], [(160, 160)])
    assert own[0].gt_boxes.tensor.tolist() == [[16, 20, 48, 140]]
    expected = torch.zeros(160, 160, dtype=torch.bool)
    expected[20:140, 16:48] = True
    assert torch.equal(own[0].gt_masks.tensor[0], expected)


def mask_loss_by_definition(psi, coefficients, mask, box, stride):
    """Binary cross-entropy inside the box, summed, over the area of the box in cells."""
    probability = torch.einsum("dhw,d->hw", psi, coefficients).sigmoid()
    x1, y1, x2, y2 = (side / stride for side in box)
    total = 0.0
    for y in range(probability.shape[0]):
        for x in range(probability.shape[1]):
            if x1 <= x + 0.5 < x2 and y1 <= y + 0.5 < y2:
                p = probability[y, x]
                total -= (p if mask[y, x] else 1 - p).log()
    return float(total / ((x2 - x1) * (y2 - y1)))


@pytest.mark.numeric
@pytest.mark.parametrize("stride", [4, 100 / 26])
def test_yolacts_mask_loss_is_its_formula(stride):
    """Also where cells are no whole number of pixels, as 550 / 138."""
    size = round(stride * 26)
    cfg = config("yolact_small_nuclei.yaml", "MODEL.YOLACT.INPUT_SIZE", "160")
    torch.manual_seed(1)
    model = build_model(cfg)
    model.input_size = size
    psi = torch.randn(2, 32, 26, 26).double()
    coefficients = torch.randn(3, 32).double().tanh()
    phi = torch.stack([torch.zeros_like(coefficients), coefficients], dim=1)
    model.object_stream.represent = lambda *_: phi
    gts = [objects(size, size, BOXES[:2]), objects(size, size, BOXES[2:])]
    for gt in gts:  # masks that do not fill their boxes
        gt.gt_masks.tensor[:, 30:35] = False
    positives = Positives(torch.tensor([0, 0, 1]), torch.tensor([4, 9, 2]), torch.tensor([1, 0, 0]))
    losses = model.mask_losses(None, psi, positives, gts)
    for loss, i, n, c in zip(losses, (0, 0, 1), (1, 0, 0), coefficients):
        masks = gts[i].gt_masks.tensor.float()
        target = F.interpolate(masks[:, None], (26, 26), mode="bilinear", align_corners=False)
        box = gts[i].gt_boxes.tensor[n].tolist()
        expected = mask_loss_by_definition(psi[i], c, target[n, 0] > 0.5, box, stride)
        assert float(loss) == pytest.approx(expected, rel=gamma(8))  # areas are float32


def test_a_sample_of_anchors_stands_for_all(model, monkeypatch):
    """The mean over the positive anchors, whatever MAX_TRAIN_MASKS is, when all losses agree."""
    batch = [image(instances=objects(100, 120, BOXES)), image(instances=objects(100, 120, []))]
    model.train()
    monkeypatch.setattr(
        model, "mask_losses", lambda objects, psi, positives, gt: torch.full((len(positives),), 2.0)
    )
    for most in (1, 2, 100):
        monkeypatch.setattr(model, "max_train_masks", most)
        mean = pytest.approx(2 * model.mask_loss_weight, rel=gamma(most + 200))
        assert float(model(batch)["loss_mask"]) == mean


def test_kept_pixels_are_counted_as_the_op_keeps_them():
    targets = torch.zeros(2, 20, 30, dtype=torch.uint8)
    targets[0, 3:9, 4:15] = 1
    targets[1, 0:2, 0:2] = 1
    windows = torch.tensor([[2, 2, 20, 12], [4, 3, 10, 9], [0, 0, 30, 20], [5, 5, 5, 9]])
    index = torch.tensor([0, 0, 1, 0])
    assert kept_pixels(windows, targets, index, None).tolist() == [180, 36, 600, 0]
    # 66 + 66; 36 and no background in the window; 4 + 4; nothing
    assert kept_pixels(windows, targets, index, 1).tolist() == [132, 36, 8, 0]
    assert kept_pixels(windows, targets, index, 2.5).tolist() == [180, 36, 14, 0]


def test_mask_targets_are_interpolation_above_one_half():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(5, 61, 83, generator=generator) < 0.6
    at_four = mask_targets(masks, (16, 24), (4, 4))
    covered = torch.zeros(5, 1, 64, 96)
    covered[:, 0, :61, :83] = masks
    finer = F.interpolate(covered, (16, 24), mode="bilinear", align_corners=False)[:, 0] > 0.5
    assert torch.equal(at_four.bool(), finer)
    for size in ((8, 12), (15, 25)):  # cells of 8 x 8 pixels, and of no whole number
        strides = (64 / size[0], 96 / size[1])
        expected = F.interpolate(covered, size, mode="bilinear", align_corners=False)[:, 0] > 0.5
        assert torch.equal(mask_targets(masks, size, strides).bool(), expected)


# --------------------------------------------------------------------------- inference


@pytest.fixture
def detecting(model):
    """In evaluation, with a threshold that lets an untrained model detect something."""
    model.eval()
    threshold, model.object_stream.score_threshold = model.object_stream.score_threshold, 0.3
    yield model
    model.object_stream.score_threshold = threshold
    model.train()


@pytest.mark.numeric
def test_masks_are_the_definition_cropped_with_the_box(detecting):
    """sigmoid(P c), or the softmax of the correlation, at the output's resolution.

    In float64, where no pixel depends on the order in which a processor adds.
    """
    detecting = copy.deepcopy(detecting).double()
    inputs = image(90, 140)
    images = detecting.preprocess_image([inputs])
    assert images.tensor.shape == (1, 3, 160, 160)
    with torch.no_grad():
        features = detecting.backbone(images.tensor)
        predictions = detecting.object_stream(features)
        psi = detecting.pixel_stream(features)
        (detections,) = detecting.object_stream.detect(predictions, [(160, 160)])
        instances = detecting([inputs])[0]["instances"]
        places = detections.places
        phi = detecting.object_stream.represent(predictions, torch.zeros_like(places), places)
    assert 5 < len(instances) == len(detections) and instances.image_size == (90, 140)
    stretched = detections.pred_boxes.tensor * torch.tensor([140 / 160, 90 / 160] * 2)
    stretched[:, 0::2].clamp_(0, 140)
    stretched[:, 1::2].clamp_(0, 90)
    assert_within(instances.regressed_boxes.tensor, stretched, gamma(4) * 140)

    if detecting.object_stream.linear_combination:
        assert (psi >= 0).all() and (phi[:, 0] == 0).all() and phi[:, 1].abs().max() <= 1
        logits = torch.einsum("dhw,nd->nhw", psi[0], phi[:, 1])
    else:
        assert (psi < 0).any()
        both = torch.einsum("dhw,nkd->nkhw", psi[0], phi)
        logits = both.softmax(1)[:, 1].logit()
    logits = F.interpolate(logits[None], (90, 140), mode="bilinear", align_corners=False)[0]
    expected = logits.sigmoid() > detecting.mask_threshold
    windows = expanded_windows(stretched, detecting.test_expand, (90, 140))
    for mask, (x1, y1, x2, y2) in zip(expected, windows.tolist()):
        outside = torch.ones_like(mask)
        outside[y1:y2, x1:x2] = False
        mask[outside] = False
    # The model's weights of neighbouring cells are float32, on either axis.
    limit = 2 * gamma(2) * logits.abs().max()
    doubtful = (logits.sigmoid() - detecting.mask_threshold).abs() <= limit
    assert expected.any() and not ((instances.pred_masks != expected) & ~doubtful).any()


def test_results_come_in_the_size_asked_for_or_of_the_image(detecting):
    with torch.no_grad():
        wanted, own = detecting([image() | {"height": 50, "width": 260}, image(33, 21)])
    assert wanted["instances"].pred_masks.shape[1:] == (50, 260)
    assert own["instances"].pred_masks.shape[1:] == (33, 21)
    for result in (wanted, own):
        instances = result["instances"]
        assert len(instances) and set(instances.get_fields()) == {
            *("pred_boxes", "regressed_boxes", "scores", "pred_classes", "pred_masks")
        }


def test_without_detections_every_field_has_its_shape(detecting):
    detecting.object_stream.score_threshold = 0.999
    with torch.no_grad():
        instances = detecting([image()])[0]["instances"]
    assert instances.pred_masks.shape == (0, 100, 120) and instances.pred_masks.dtype == torch.bool
    assert instances.pred_boxes.tensor.shape == instances.regressed_boxes.tensor.shape == (0, 4)
    assert instances.scores.shape == instances.pred_classes.shape == (0,)


def test_without_a_fixed_size_images_are_padded_together():
    torch.manual_seed(0)
    model = build_model(config("rdsnet_s_small_nuclei.yaml"))
    batch = [
        image(instances=objects(100, 120, BOXES)),
        image(45, 70, instances=objects(45, 70, [[5, 5, 40, 30]])),
    ]
    assert set(model(batch)) == LOSSES
    model.eval()
    model.object_stream.score_threshold = 0.3
    with torch.no_grad():
        shapes = [x["instances"].pred_masks.shape[1:] for x in model(batch)]
    assert shapes == [(100, 120), (45, 70)]


# ----------------------------------------------------------------------------- configs


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_config_loads_over_the_defaults(path):
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(str(path))
    assert cfg.MODEL.META_ARCHITECTURE == "YOLACT"
    assert cfg.MODEL.RDSNET.OBJECT_STREAM == "YOLACTStream"


@pytest.mark.parametrize("depth", [50, 101])
def test_the_papers_settings(depth):
    yolact = config(f"yolact_R_{depth}_FPN_550.yaml")
    ours = config(f"rdsnet_s_R_{depth}_FPN_550.yaml")
    for cfg in (yolact, ours):
        assert cfg.MODEL.RESNETS.DEPTH == depth and f"R-{depth}" in cfg.MODEL.WEIGHTS
        assert cfg.MODEL.YOLACT.INPUT_SIZE == 550 and cfg.INPUT.MIN_SIZE_TEST == 0
        assert cfg.SOLVER.STEPS == (280000, 600000, 700000, 750000)
        assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH) == (800000, 8)
        assert cfg.SOLVER.BASE_LR * cfg.SOLVER.WARMUP_FACTOR == pytest.approx(1e-4)
        assert cfg.DATASETS.MAPPER == "YOLACTDatasetMapper"
    keys = yolact.MODEL.RDSNET, ours.MODEL.RDSNET
    assert [k.MASK_ASSEMBLY for k in keys] == ["linear_combination", "correlation"]
    assert [(k.TRAIN_EXPAND, k.TEST_EXPAND) for k in keys] == [(1.0, 1.0), (1.5, 1.2)]
    assert [k.OHEM.ENABLED for k in keys] == [False, True]
    assert [k.MASK_THRESHOLD for k in keys] == [0.5, 0.4]


def test_the_rows_of_table_3():
    rows = [config(f"Table3/row_{i}.yaml").MODEL.RDSNET for i in range(1, 8)]
    assert [r.MASK_ASSEMBLY for r in rows] == ["linear_combination"] + 6 * ["correlation"]
    assert [r.TRAIN_EXPAND > 1 for r in rows] == [False] * 3 + [True] * 4
    assert [r.TEST_EXPAND > 1 for r in rows] == [False, False, True, False, True, False, True]
    assert [r.OHEM.ENABLED for r in rows] == [False] * 5 + [True] * 2


def test_the_full_model_runs_on_550_px():
    """ResNet-50: 19248 anchors and 138 x 138 prototypes, on an image of another shape."""
    cfg = config("yolact_R_50_FPN_550.yaml", "MODEL.WEIGHTS", "")
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    assert isinstance(model, YOLACT) and isinstance(model.backbone, YOLACTFPN)
    images = model.preprocess_image([image(120, 200)])
    with torch.no_grad():
        features = model.backbone(images.tensor)
        predictions = model.object_stream(features)
        psi = model.pixel_stream(features)
        assert model([image(120, 200)])[0]["instances"].image_size == (120, 200)
    assert [f.shape[-1] for f in features.values()] == [69, 35, 18, 9, 5]
    assert sum(x.shape[1] for x in predictions.logits) == 19248
    assert psi.shape == (1, 32, 138, 138)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="MASK_ASSEMBLY must be .* got 'sum'"):
        build_model(config(SMALL[0], "MODEL.RDSNET.MASK_ASSEMBLY", "sum"))
    with pytest.raises(ValueError, match="INPUT_SIZE must be a multiple of 32 .* got 550"):
        build_model(config(SMALL[0], "MODEL.YOLACT.INPUT_SIZE", "550"))
    with pytest.raises(ValueError, match=r"IN_FEATURES must be \['p3'\], got \['p4'\]"):
        build_model(config(SMALL[0], "MODEL.RDSNET.PIXEL_STREAM.IN_FEATURES", "['p4']"))
    with pytest.raises(ValueError, match="PIXEL_STREAM.STRIDE must be 4, got 2"):
        build_model(config(SMALL[0], "MODEL.RDSNET.PIXEL_STREAM.STRIDE", "2"))
    with pytest.raises(ValueError, match="MASK_LOSS.RESOLUTION must be grid, got image"):
        build_model(config(SMALL[0], "MODEL.RDSNET.MASK_LOSS.RESOLUTION", "image"))


# ------------------------------------------------------------------- training and after


def test_train_evaluate_and_predict_on_own_data(tmp_path):
    """YOLACT's augmentation, classes from the json, DefaultPredictor at its defaults."""
    shapes = make_shapes_dataset(tmp_path, num_train=4, num_val=2, size=(96, 128), seed=3)
    files = [
        ["y_train", shapes["train_json"], shapes["train_images"]],
        ["y_val", shapes["val_json"], shapes["val_images"]],
    ]
    options = [
        *("DATASETS.COCO_FILES", str(files), "DATASETS.MAPPER", "YOLACTDatasetMapper"),
        *("DATASETS.TRAIN", "('y_train',)", "DATASETS.TEST", "('y_val',)"),
        *("MODEL.RETINANET.NUM_CLASSES", "-1", "MODEL.YOLACT.INPUT_SIZE", "96"),
        *("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2"),
        *("DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(tmp_path / "output"), "SEED", "1"),
        *("INPUT.CROP.ENABLED", "False", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.1"),
        *("MODEL.DEVICE", "cpu"),
    ]
    cfg = load_config(str(CONFIGS / SMALL[1]), options)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 5
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    assert {"bbox", "bbox_regressed", "segm"} <= set(results)

    cfg.MODEL.WEIGHTS = str(tmp_path / "output" / "model_final.pth")
    cfg.INPUT.MIN_SIZE_TEST = 800  # as in Detectron2's default: the model brings it to 96 anyway
    photograph = np.random.default_rng(0).integers(0, 255, (70, 140, 3), dtype=np.uint8)
    instances = DefaultPredictor(cfg)(photograph)["instances"]
    assert len(instances) and instances.pred_masks.shape[1:] == (70, 140)
    assert json.loads(Path(shapes["val_json"]).read_text())["categories"]
