"""The whole model: inputs of every kind, outputs of the promised form, weights that fit or not."""

import copy

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from helpers.rounding import ELEMENTARY, assert_within, gamma
from torch.nn import functional as F

import rdsnet
from rdsnet.modeling.cropping import expanded_windows
from rdsnet.ops import CompactMasks


def small_config(**keys):
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file("configs/small/rdsnet_small.yaml")
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.MODEL.DEVICE = "cpu"
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(small_config())


@pytest.fixture
def detecting(model):
    """The model in evaluation, with a threshold that lets an untrained one detect something."""
    threshold = model.object_stream.score_threshold
    model.eval()
    model.object_stream.score_threshold = 0.011
    yield model
    model.object_stream.score_threshold = threshold
    model.train()


@pytest.fixture
def exact(detecting):
    """The same in float64, where it does not matter in which order a processor adds."""
    return copy.deepcopy(detecting).double()


def image(height=100, width=120, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return {"image": torch.rand(3, height, width, generator=generator) * 255, **kwargs}


def image_with_output(height, width):
    """An input of 100 x 120 px whose results are wanted at another size."""
    return image() | {"height": height, "width": width}


def objects(height, width, boxes, mask_kind="bitmask"):
    if mask_kind == "bitmask":
        masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            mask[y1:y2, x1:x2] = True
        masks = BitMasks(masks)
    else:
        masks = PolygonMasks([[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes])
    return Instances(
        (height, width),
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4)),
        gt_classes=torch.arange(len(boxes)) % 3,
        gt_masks=masks,
    )


BOXES = [[10, 10, 60, 50], [30, 40, 100, 90], [70, 5, 82, 17]]


def test_training_gives_the_three_losses_of_equation_8_and_gradients_everywhere(model):
    batch = [
        image(instances=objects(100, 120, BOXES)),
        image(90, 150, 1, instances=objects(90, 150, BOXES[:1])),
    ]
    losses = model(batch)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask"}
    model.zero_grad()
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == ["mbrm.weight", "mbrm.bias"]  # trained on its own, afterwards
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.object_stream.head.rep_pred.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("with_masks", [True, False])
def test_batches_without_any_object_train(model, with_masks):
    empty = objects(100, 120, [])
    if not with_masks:
        empty.remove("gt_masks")  # Detectron2's mapper leaves the field out for such images
    losses = model([image(instances=empty)])
    model.zero_grad()
    sum(losses.values()).backward()
    assert losses["loss_mask"] == 0 and losses["loss_box_reg"] == 0
    missing = [n for n, p in model.named_parameters() if p.grad is None and "mbrm" not in n]
    assert missing == []


def test_polygons_and_bitmasks_of_the_same_shapes_give_the_same_mask_loss(model):
    losses = []
    for kind in ("bitmask", "polygon"):
        torch.manual_seed(3)
        losses.append(model([image(instances=objects(100, 120, BOXES, kind))])["loss_mask"])
    assert losses[0] == losses[1]  # the same masks, so the same arithmetic


def test_objects_without_masks_are_refused_with_the_remedy(model):
    bare = objects(100, 120, BOXES)
    bare.remove("gt_masks")
    with pytest.raises(ValueError, match=r"no gt_masks. Set MODEL.MASK_ON True"):
        model([image(instances=bare)])


@torch.no_grad()
def test_results_have_every_field_at_the_output_resolution(detecting):
    results = detecting([image_with_output(210, 333), image(64, 50, 1)])
    for result, size in zip(results, [(210, 333), (64, 50)], strict=True):
        found = result["instances"]
        assert found.image_size == size and len(found) > 0
        n = len(found)
        assert found.pred_boxes.tensor.shape == found.regressed_boxes.tensor.shape == (n, 4)
        assert found.pred_masks.shape == (n, *size) and found.pred_masks.dtype == torch.bool
        assert found.scores.shape == found.pred_classes.shape == (n,)
        assert not torch.equal(found.pred_boxes.tensor, found.regressed_boxes.tensor)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (37, 53)])
def test_images_of_any_size(detecting, size):
    detecting([image(*size)])
    found = detecting([image_with_output(*size)])[0]["instances"]
    assert found.pred_masks.shape[1:] == size


@torch.no_grad()
def test_no_detection_keeps_every_field_with_its_shape(detecting):
    detecting.object_stream.score_threshold = 0.9999
    for dense, kind in ((True, torch.Tensor), (False, CompactMasks)):
        detecting.dense_masks = dense
        found = detecting([image_with_output(70, 90)])[0]["instances"]
        assert len(found) == 0 and isinstance(found.pred_masks, kind)
        assert found.pred_boxes.tensor.shape == found.regressed_boxes.tensor.shape == (0, 4)
        if dense:
            assert found.pred_masks.shape == (0, 70, 90)
    detecting.dense_masks = True


@pytest.mark.numeric
@torch.no_grad()
def test_masks_equal_correlation_and_interpolation_of_whole_images(exact):
    """Eq. 1 as written: softmax of two full-size channels, then the expanded box, then 0.4."""
    batch = image_with_output(150, 90)
    found = exact([batch])[0]["instances"]
    images = exact.preprocess_image([batch])
    features = exact.backbone(images.tensor)
    predictions = exact.object_stream(features)
    psi = exact.pixel_stream(features)[0]
    detections = exact.object_stream.detect(predictions, images.image_sizes)[0]
    index = torch.zeros_like(detections.places)
    phi = exact.object_stream.represent(predictions, index, detections.places)
    assert len(found) == len(detections)
    scores = torch.einsum("ncd,dhw->nchw", phi, psi)
    # Half-pixel bilinear from the grid to the 100 x 120 input, then on to 150 x 90.
    y = ((torch.arange(150).double() + 0.5) * 100 / 150 / 4 - 0.5).clamp(0, psi.shape[1] - 1)
    x = ((torch.arange(90).double() + 0.5) * 120 / 90 / 4 - 0.5).clamp(0, psi.shape[2] - 1)
    grid = torch.stack(
        torch.meshgrid(
            x / (psi.shape[2] - 1) * 2 - 1, y / (psi.shape[1] - 1) * 2 - 1, indexing="xy"
        ),
        dim=-1,
    )
    resized = F.grid_sample(
        scores, grid.expand(len(phi), -1, -1, -1), mode="bilinear", align_corners=True
    )
    foreground = resized.softmax(1)[:, 1]
    boxes = found.regressed_boxes.tensor
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * 0.6
    low, high = (centre - half)[..., None, None], (centre + half)[..., None, None]
    column, row = torch.arange(90) + 0.5, (torch.arange(150) + 0.5)[:, None]
    inside = (column >= low[:, 0]) & (column < high[:, 0])
    inside = inside & (row >= low[:, 1]) & (row < high[:, 1])
    expected = (foreground > 0.4) & inside
    # The model's weights of neighbouring cells are float32, on either axis.
    certain = (foreground - 0.4).abs() > 2 * gamma(2) * scores.abs().max()
    assert expected.any() and not ((found.pred_masks != expected) & certain).any()


FINER = {
    "MODEL__FPN__IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL__RDSNET__PIXEL_STREAM__IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL__RDSNET__MASK_LOSS__RESOLUTION": "image",
}


@pytest.mark.parametrize("stride", [4, 2])
def test_psi_from_p2_with_the_loss_at_the_pixels(stride):
    """Trains, and a mask is where correlation brought to the image says it is."""
    torch.manual_seed(0)
    model = build_model(small_config(**FINER, MODEL__RDSNET__PIXEL_STREAM__STRIDE=stride))
    losses = model(
        [
            image(instances=objects(100, 120, BOXES)),
            image(90, 150, 1, instances=objects(90, 150, BOXES[:1])),
        ]
    )
    sum(losses.values()).backward()
    assert losses["loss_mask"] > 0
    without = [n for n, p in model.named_parameters() if p.grad is None and "mbrm" not in n]
    assert without == []

    model.eval().object_stream.score_threshold = 0.011
    with torch.no_grad():
        batch = image()
        found = model([batch])[0]["instances"]
        images = model.preprocess_image([batch])
        features = model.backbone(images.tensor)
        psi = model.pixel_stream(features)
        assert psi.shape[2:] == tuple(side // stride for side in images.tensor.shape[2:])
        predictions = model.object_stream(features)
        places = model.detect(predictions, images.image_sizes, [batch])[0].places
        phi = model.object_stream.represent(predictions, torch.zeros_like(places), places)
        scores = torch.einsum("ncd,dhw->nchw", phi, psi[0])
        fine = F.interpolate(scores, scale_factor=stride, mode="bilinear", align_corners=False)
        foreground = fine.softmax(1)[:, 1, :100, :120]
    inside = torch.zeros_like(found.pred_masks)
    windows = expanded_windows(found.regressed_boxes.tensor, 1.2, (100, 120))
    for own, (x1, y1, x2, y2) in zip(inside, windows.tolist(), strict=True):
        own[y1:y2, x1:x2] = True
    certain = (foreground - 0.4).abs() > 2 * gamma(2) * scores.abs().max()
    assert found.pred_masks.any()
    assert torch.equal(found.pred_masks & certain, (foreground > 0.4) & inside & certain)


def test_the_modern_recipe_trains():
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file("configs/plus/rdsnet_plus_R_50_FPN_3x.yaml")
    keys = {"MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": "", "MODEL.RETINANET.NUM_CLASSES": 3}
    cfg.merge_from_list([word for pair in keys.items() for word in pair])
    torch.manual_seed(0)
    model = build_model(cfg)
    losses = model([image(instances=objects(100, 120, BOXES))])
    sum(losses.values()).backward()
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask"}
    assert all(0 < loss < 100 for loss in losses.values())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
def test_mask_scoring_ranks_by_class_and_mask(exact):
    inputs = [image_with_output(150, 210)]
    plain = exact(inputs)[0]["instances"]
    exact.mask_scoring = True
    scored = exact(inputs)[0]["instances"]
    assert len(scored) == len(plain) > 20
    assert (scored.scores.diff() <= 0).all()
    # The same objects, each with a score that its mask has lowered.
    before, after = (
        [(*box, k) for box, k in zip(x.regressed_boxes.tensor.tolist(), x.pred_classes.tolist())]
        for x in (plain, scored)
    )
    index = torch.tensor([before.index(one) for one in after])
    assert len(set(before)) == len(index.unique()) == len(plain)
    factors = scored.scores / plain.scores[index]
    assert (factors <= 1).all() and factors.min() < factors.max()
    assert (scored.pred_masks == plain.pred_masks[index]).all()
    has_mask = scored.pred_masks.flatten(1).any(1)
    assert (factors[has_mask & (factors > 0)] > exact.mask_threshold).all()


def test_an_unknown_place_for_the_mask_loss_is_refused():
    with pytest.raises(ValueError, match="MASK_LOSS.RESOLUTION must be one of .*got 'pixels'"):
        build_model(small_config(MODEL__RDSNET__MASK_LOSS__RESOLUTION="pixels"))


@pytest.mark.numeric
@torch.no_grad()
def test_results_do_not_depend_on_the_batch(exact):
    together = exact([image(96, 128, 0), image(96, 128, 1)])
    alone = exact([image(96, 128, 1)])[0]["instances"]
    other = together[1]["instances"]
    # Boxes are decoded in float32.
    limit = gamma(8 + ELEMENTARY) * 128
    assert_within(other.regressed_boxes.tensor, alone.regressed_boxes.tensor, limit)
    assert torch.equal(other.pred_masks, alone.pred_masks)


def test_without_mbrm_boxes_stay_as_regressed():
    torch.manual_seed(0)
    model = build_model(small_config(MODEL__RDSNET__MBRM__ENABLED=False)).eval()
    model.object_stream.score_threshold = 0.011
    with torch.no_grad():
        found = model([image()])[0]["instances"]
    assert len(found) and torch.equal(found.pred_boxes.tensor, found.regressed_boxes.tensor)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    model = build_model(small_config()).eval()
    foreign = {"model": {"backbone.bottom_up.stem.conv1.weight": torch.zeros(64, 3, 7, 7)}}
    torch.save(foreign, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match="checkpoint does not fit this model: .* weights are miss"):
        DetectionCheckpointer(model).load(str(tmp_path / "foreign.pth"))


def test_a_checkpoint_with_other_classes_is_refused_for_inference(tmp_path):
    other = build_model(small_config(MODEL__RETINANET__NUM_CLASSES=7))
    torch.save({"model": other.state_dict()}, tmp_path / "other.pth")
    model = build_model(small_config()).eval()
    with pytest.raises(ValueError, match="object_stream.head.cls_score.weight"):
        DetectionCheckpointer(model).load(str(tmp_path / "other.pth"))


def test_a_checkpoint_without_mbrm_gets_the_published_kernel(tmp_path):
    model = build_model(small_config())
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("mbrm.")}
    torch.save({"model": weights}, tmp_path / "weights.pth")
    fresh = build_model(small_config()).eval()
    DetectionCheckpointer(fresh).load(str(tmp_path / "weights.pth"))
    assert fresh.mbrm.weight[0, 0, 3].item() == pytest.approx(-3.2545)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_says_what_to_do():
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'cuda'.* no GPU .*MODEL.DEVICE cpu"):
        build_model(small_config(MODEL__DEVICE="cuda"))


def test_training_starts_from_a_backbone_but_not_from_weights_that_fit_nowhere(tmp_path):
    model = build_model(small_config())
    weights = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    torch.save({"model": weights}, tmp_path / "backbone.pth")
    fresh = build_model(small_config())
    DetectionCheckpointer(fresh).load(str(tmp_path / "backbone.pth"))
    name = "backbone.fpn_lateral3.weight"
    assert torch.equal(fresh.state_dict()[name], weights[name])
    torch.save({"model": {"conv1.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not fit this model"):
        DetectionCheckpointer(fresh).load(str(tmp_path / "other.pth"))
