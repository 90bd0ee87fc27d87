"""From image to refined boxes through the public path, against the authors' numbers."""

import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from helpers.golden_data import (
    assert_sample,
    dense_probability,
    golden,
    masks_from_bits,
    ratio_major,
    tensor,
)

from rdsnet.projects.authors_compat import padded_windows, to_inclusive
from rdsnet.projects.authors_compat.resize import scale_factor, two_resize_taps

DATA = golden("e2e_infer_r50")


def network_input(image: int) -> dict:
    """As the README of the project tells: RGB, 0..255, with the size of the original image."""
    height, width = DATA[f"img{image}_ori_shape"].tolist()
    rgb = tensor(DATA[f"img{image}_image"]).permute(2, 0, 1)
    return {"image": rgb, "height": height, "width": width}


def match(classes, boxes, expected_classes, expected_boxes):
    """For every detection the index of the expected one of its class with the nearest box."""
    distance = (boxes[:, None] - expected_boxes).abs().amax(2)
    distance[classes[:, None] != expected_classes] = float("inf")
    nearest, index = distance.min(1)
    assert sorted(index.tolist()) == list(range(len(expected_boxes)))
    return index, nearest.max().item()


@pytest.fixture(scope="module", params=[0, 1])
def detected(request, loaded_model):
    model = loaded_model.eval()
    with torch.no_grad():
        (result,) = model([network_input(request.param)])
    return request.param, result["instances"]


def test_same_detections(detected):
    image, instances = detected
    boxes = to_inclusive(instances.regressed_boxes.tensor)
    expected_boxes = tensor(DATA[f"img{image}_det_boxes"])
    labels = tensor(DATA[f"img{image}_det_labels"])
    index, difference = match(instances.pred_classes, boxes, labels, expected_boxes)
    assert difference < 2e-3
    scores = tensor(DATA[f"img{image}_det_scores"])[index]
    torch.testing.assert_close(instances.scores, scores, rtol=0, atol=1e-5)
    assert (instances.scores.diff() <= 0).all()


def test_same_masks(detected):
    image, instances = detected
    size = tuple(DATA[f"img{image}_ori_shape"].tolist())
    index = matched_index(image, instances)
    expected = masks_from_bits(DATA[f"img{image}_mask_bits"], *size)[index]
    assert (instances.pred_masks != expected).sum() <= 5
    areas = tensor(DATA[f"img{image}_mask_area"])[index]
    assert (instances.pred_masks.sum((1, 2)) - areas).abs().max() <= 5


def test_same_refined_boxes(detected):
    image, instances = detected
    index = matched_index(image, instances)
    refined = to_inclusive(instances.pred_boxes.tensor)
    expected = tensor(DATA[f"img{image}_boxes_refined"])[index]
    decided = tensor(DATA[f"img{image}_refined_margin"])[index] > 1e-5
    assert decided.float().mean() > 0.95
    assert torch.equal(refined[decided], expected[decided])


def test_coco_results_have_the_authors_boxes(detected):
    image, instances = detected
    index = matched_index(image, instances)
    before = instances.__class__(instances.image_size, **instances.get_fields())
    before.pred_boxes = instances.regressed_boxes
    for name, result in (("before", before), ("after", instances)):
        rows = instances_to_coco_json(result, img_id=1)
        ours = torch.tensor([row["bbox"] for row in rows])
        expected = tensor(DATA[f"img{image}_coco_xywh_{name}"])[index]
        decided = torch.ones_like(expected, dtype=torch.bool)
        if name == "after":
            # x, y, w, h depend on the left, top, left and right, top and bottom edge.
            margin = tensor(DATA[f"img{image}_refined_margin"])[index] > 1e-5
            decided = torch.cat([margin[:, :2], margin[:, :2] & margin[:, 2:]], dim=1)
        torch.testing.assert_close(ours[decided], expected[decided], rtol=0, atol=2e-3)


def matched_index(image, instances):
    boxes = to_inclusive(instances.regressed_boxes.tensor)
    labels = tensor(DATA[f"img{image}_det_labels"])
    expected = tensor(DATA[f"img{image}_det_boxes"])
    return match(instances.pred_classes, boxes, labels, expected)[0]


@pytest.fixture(scope="module", params=[0, 1])
def stages(request, loaded_model):
    """Backbone, heads and pixel stream on one image."""
    image, model = request.param, loaded_model.eval()
    with torch.no_grad():
        images = model.preprocess_image([network_input(image)])
        bottom_up = model.backbone.bottom_up
        c2 = bottom_up.res2(bottom_up.stem(images.tensor))
        features = model.backbone(images.tensor)
        return image, images, c2, features, model.object_stream(features), model.pixel_stream


def test_padded_size(stages):
    image, images, *_ = stages
    assert list(images.tensor.shape[2:]) == DATA[f"img{image}_pad_shape"].tolist()


def test_feature_maps(stages, model):
    image, images, c2, features, _, _ = stages
    assert_sample(c2, DATA, f"img{image}_C2")
    with torch.no_grad():
        for name, feature in model.backbone.bottom_up(images.tensor).items():
            assert_sample(feature, DATA, f"img{image}_C{name[-1]}")
    for name, feature in features.items():
        assert_sample(feature, DATA, f"img{image}_P{name[-1]}")


def test_head_outputs(stages, model):
    image, _, _, features, objects, pixel_stream = stages
    rep_pred = model.object_stream.head.rep_pred
    for i, level in enumerate(range(3, 8)):
        height, width = features[f"p{level}"].shape[2:]
        outputs = {"cls": objects.logits[i], "reg": objects.deltas[i]}
        for kind, output in outputs.items():
            dense = output.view(1, height, width, -1).permute(0, 3, 1, 2)
            assert_sample(ratio_major(dense), DATA, f"img{image}_{kind}_p{level}")
        with torch.no_grad():
            reps = rep_pred(objects.rep_features[i])
        assert_sample(ratio_major(reps), DATA, f"img{image}_rep_p{level}")
    with torch.no_grad():
        assert_sample(pixel_stream(features), DATA, f"img{image}_pixel_reps")


def test_candidates_before_nms(stages, model, monkeypatch):
    image, images, _, _, objects, _ = stages
    stream = model.object_stream
    monkeypatch.setattr(stream, "nms_threshold", 1.0)  # an IoU is never larger: nothing goes
    monkeypatch.setattr(stream, "max_detections", 10**6)
    size = images.image_sizes[0]
    original = tuple(DATA[f"img{image}_ori_shape"].tolist())
    scale = scale_factor(size, original, 1333 / 800)
    assert scale[0] == scale[1] == pytest.approx(float(DATA[f"img{image}_scale_factor"]))
    (candidates,) = stream.detect(objects, [size], [scale])
    index, difference = match(
        candidates.pred_classes,
        candidates.pred_boxes.tensor,
        tensor(DATA[f"img{image}_cand_labels"]),
        tensor(DATA[f"img{image}_cand_boxes"]),
    )
    assert difference < 2e-3
    scores = tensor(DATA[f"img{image}_cand_scores"])[index]
    torch.testing.assert_close(candidates.scores, scores, rtol=0, atol=1e-5)


def test_representations_similarities_and_probabilities(stages, model):
    image, images, _, features, objects, pixel_stream = stages
    size, original = images.image_sizes[0], tuple(DATA[f"img{image}_ori_shape"].tolist())
    (detections,) = model.object_stream.detect(
        objects, [size], [scale_factor(size, original, 1333 / 800)]
    )
    with torch.no_grad():
        psi = pixel_stream(features)[0]
        image_index = torch.zeros_like(detections.places)
        phi = model.object_stream.represent(objects, image_index, detections.places)
    expected_boxes = tensor(DATA[f"img{image}_det_boxes"])
    index, _ = match(
        detections.pred_classes,
        detections.pred_boxes.tensor,
        tensor(DATA[f"img{image}_det_labels"]),
        expected_boxes,
    )
    order = index.argsort()
    phi, boxes = phi[order], detections.pred_boxes.tensor[order]
    expected = tensor(DATA[f"img{image}_det_reps"]).view(-1, 2, 32)
    tolerance = 1e-4 * expected.abs().max().item()
    torch.testing.assert_close(phi, expected, rtol=0, atol=tolerance)
    logits = torch.einsum("ncd,dhw->nhwc", phi, psi)
    assert_sample(logits, DATA, f"img{image}_logits")
    taps = [two_resize_taps(*s, 4) for s in zip(original, size, psi.shape[1:], strict=True)]
    windows = padded_windows(boxes, 0.1, original)
    probability = dense_probability(psi, phi, windows, taps, original)
    assert_sample(probability, DATA, f"img{image}_mask_prob", relative=1e-4)
    near = (probability - 0.4).abs().lt(0.001).sum((1, 2))
    expected = tensor(DATA[f"img{image}_mask_near_threshold"])
    assert (near - expected).abs().max() <= 3


def test_an_image_without_detections_keeps_every_field(model):
    height, width = 65, 97
    blank = torch.zeros(3, height, width)
    with torch.no_grad():
        threshold, model.object_stream.score_threshold = model.object_stream.score_threshold, 1.0
        try:
            (result,) = model([{"image": blank, "height": 31, "width": 47}])
        finally:
            model.object_stream.score_threshold = threshold
    instances = result["instances"]
    assert instances.image_size == (31, 47) and len(instances) == 0
    assert instances.pred_boxes.tensor.shape == instances.regressed_boxes.tensor.shape == (0, 4)
    assert instances.pred_masks.shape == (0, 31, 47)
    assert instances.scores.shape == instances.pred_classes.shape == (0,)


@pytest.mark.parametrize("limits", [(800, 1333), (248, 413)])
@pytest.mark.parametrize("original", [(428, 640), (640, 480), (360, 640), (370, 640), (640, 333)])
def test_scale_factor_is_that_of_the_side_that_was_asked_for(original, limits):
    short, long = limits
    scale = min(short / min(original), long / max(original))
    resized = tuple(int(side * scale + 0.5) for side in original)
    expected = pytest.approx((scale, scale), rel=1e-12)
    assert scale_factor(resized, original, long / short) == expected


def test_scale_factor_of_an_image_that_was_not_scaled_evenly_is_per_axis():
    assert scale_factor((100, 300), (100, 100), 1333 / 800) == (3.0, 1.0)


def test_a_given_scale_factor_is_used(model):
    x = network_input(0)
    given = 0.58
    with torch.no_grad():
        images = model.preprocess_image([x])
        objects = model.object_stream(model.backbone(images.tensor))
        (ours,) = model.detect(objects, images.image_sizes, [{**x, "scale_factor": given}])
        (unscaled,) = model.object_stream.detect(objects, images.image_sizes)
    best = unscaled.pred_boxes.tensor[0] / given
    torch.testing.assert_close(ours.pred_boxes.tensor[0], best, rtol=1e-6, atol=1e-4)


def test_a_batch_of_images_of_different_size_has_results_in_each_images_own_size(model):
    with torch.no_grad():
        results = model([network_input(0), network_input(1)])
    for image, result in enumerate(results):
        size = tuple(DATA[f"img{image}_ori_shape"].tolist())
        instances = result["instances"]
        assert instances.image_size == size and instances.pred_masks.shape[1:] == size
        boxes = to_inclusive(instances.regressed_boxes.tensor)
        # Image 0 is the larger one, image 1 is padded to its width. GroupNorm sees the padding, so
        # detections are similar only; those of image 0 are the same.
        assert (boxes[:, 2:] <= torch.tensor(size[::-1])).all()
        if image == 0:
            matched_index(0, instances)


def test_other_refinements_of_the_core_are_refused(make_config):
    for key, value in (("METHOD", "direct"), ("READOUT", "expectation")):
        cfg = make_config()
        cfg.MODEL.RDSNET.MBRM[key] = value
        with pytest.raises(ValueError, match=value):
            build_model(cfg)


def test_without_mbrm_boxes_are_as_regressed(make_config, loaded_model):
    cfg = make_config()
    cfg.MODEL.RDSNET.MBRM.ENABLED = False
    model = build_model(cfg).eval()
    weights = loaded_model.state_dict()
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("mbrm.")})
    with torch.no_grad():
        (result,) = model([network_input(0)])
    instances = result["instances"]
    assert len(instances) == len(DATA["img0_det_boxes"])
    assert torch.equal(instances.pred_boxes.tensor, instances.regressed_boxes.tensor)


def test_a_mask_loss_at_the_pixels_is_refused(make_config):
    cfg = make_config()
    cfg.MODEL.RDSNET.MASK_LOSS.RESOLUTION = "image"
    with pytest.raises(ValueError, match="RESOLUTION must be grid, got image"):
        build_model(cfg)
