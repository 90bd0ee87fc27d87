"""From image to refined boxes through the public path, against the authors' numbers."""

from typing import NamedTuple

import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from helpers.golden_data import (
    assert_sample,
    golden,
    masks_from_bits,
    ratio_major,
    resized_limits,
    tensor,
)
from helpers.rounding import ELEMENTARY, assert_within, disturbed, gamma, spread
from ops import naive

from rdsnet.modeling.object_stream import DensePredictions
from rdsnet.projects.authors_compat import padded_windows, to_inclusive
from rdsnet.projects.authors_compat.boxes import clip_inclusive
from rdsnet.projects.authors_compat.resize import scale_factor, two_resize_taps

pytestmark = pytest.mark.numeric
DATA = golden("e2e_infer_r50")
STAGES = [
    *("C2", "C3", "C4", "C5", "P3", "P4", "P5", "P6", "P7"),
    *(f"{kind}_p{level}" for kind in ("cls", "reg", "rep") for level in range(3, 8)),
    "pixel_reps",
]


def network_input(image: int) -> dict:
    """As the README of the project tells: RGB, 0..255, with the size of the original image."""
    height, width = DATA[f"img{image}_ori_shape"].tolist()
    rgb = tensor(DATA[f"img{image}_image"]).permute(2, 0, 1)
    return {"image": rgb, "height": height, "width": width}


def match(classes, boxes, expected_classes, expected_boxes):
    """For every detection the index of the expected one of its class with the nearest box."""
    distance = (boxes[:, None] - expected_boxes).abs().amax(2)
    distance[classes[:, None] != expected_classes] = float("inf")
    index = distance.argmin(1)
    assert sorted(index.tolist()) == list(range(len(expected_boxes)))
    return index


class Stages(NamedTuple):
    """What a model computes on its way; tensors by the names of the golden file."""

    tensors: dict[str, torch.Tensor]
    image_size: tuple[int, int]
    objects: DensePredictions
    scale: tuple[float, float]


@torch.no_grad()
def run_stages(model, image: int) -> Stages:
    images = model.preprocess_image([network_input(image)])
    size, original = images.image_sizes[0], tuple(DATA[f"img{image}_ori_shape"].tolist())
    assert list(images.tensor.shape[2:]) == DATA[f"img{image}_pad_shape"].tolist()
    bottom_up = model.backbone.bottom_up
    tensors = {"C2": bottom_up.res2(bottom_up.stem(images.tensor))}
    tensors |= {f"C{name[-1]}": x for name, x in bottom_up(images.tensor).items()}
    features = model.backbone(images.tensor)
    objects = model.object_stream(features)
    for i, name in enumerate(f"p{level}" for level in range(3, 8)):
        tensors[name.upper()] = features[name]
        grid = features[name].shape[2:]
        for kind, output in (("cls", objects.logits[i]), ("reg", objects.deltas[i])):
            tensors[f"{kind}_{name}"] = output.view(1, *grid, -1).permute(0, 3, 1, 2)
        tensors[f"rep_{name}"] = model.object_stream.head.rep_pred(objects.rep_features[i])
    tensors["pixel_reps"] = model.pixel_stream(features)
    return Stages(tensors, size, objects, scale_factor(size, original, 1333 / 800))


@pytest.fixture(scope="module", params=[0, 1])
def stages(request, exact_model, moved_model):
    """(image, stages in float64, the same with disturbed weights)"""
    return request.param, *(run_stages(m, request.param) for m in (exact_model, moved_model))


def decoded(stages: Stages, model, places, classes):
    """Boxes (N, 4) and scores (N,) of chosen anchors, in pixels of the original image."""
    deltas = torch.cat(stages.objects.deltas, 1)[0, places]
    anchors = torch.cat([x.tensor for x in stages.objects.anchors])[places]
    boxes = model.object_stream.box2box_transform.apply_deltas(deltas, anchors)
    scale = boxes.new_tensor(stages.scale).repeat(2)
    scores = torch.cat(stages.objects.logits, 1)[0, places, classes].sigmoid()
    return clip_inclusive(boxes, stages.image_size) / scale, scores


def detection_limits(exact: Stages, moved: Stages, model, detections) -> tuple[float, float]:
    """How far the authors' boxes and scores may be off. Ours are decoded in float32, too."""
    chosen = detections.places, detections.pred_classes
    (boxes, scores), others = (decoded(x, model, *chosen) for x in (exact, moved))
    decoding = gamma(8 + ELEMENTARY)
    return (
        spread(boxes, others[0]) + 2 * decoding * boxes.abs().max().item(),
        spread(scores, others[1]) + 2 * decoding * scores.max().item(),
    )


@pytest.mark.parametrize("name", STAGES)
def test_stages_of_the_network(stages, name):
    image, exact, moved = stages
    actual, limit = exact.tensors[name], spread(exact.tensors[name], moved.tensors[name])
    if name.startswith(("cls", "reg", "rep")):
        actual = ratio_major(actual)
    assert_sample(actual, DATA, f"img{image}_{name}", limit)


def test_float32_is_float64_up_to_rounding(model, exact_model):
    """The limit is where rounding could carry the results at most."""
    exact = run_stages(exact_model, 0).tensors
    moved = run_stages(disturbed(exact_model), 0).tensors
    for name, found in run_stages(model, 0).tensors.items():
        assert found.dtype == torch.float32
        assert_within(found, exact[name], spread(exact[name], moved[name]), name)


@pytest.fixture(scope="module")
def detected(stages, exact_model, moved_model):
    """(image, what the public path detects, the authors' index of each, limits of boxes, scores)"""
    image, exact, moved = stages
    with torch.no_grad():
        (result,) = exact_model([network_input(image)])
        (places,) = exact_model.object_stream.detect(
            exact.objects, [exact.image_size], [exact.scale]
        )
    instances = result["instances"]
    limits = detection_limits(exact, moved, exact_model, places)
    return image, instances, matched_index(image, instances), *limits


def test_same_detections(detected):
    image, instances, index, boxes_limit, scores_limit = detected
    boxes = to_inclusive(instances.regressed_boxes.tensor)
    assert_within(boxes, tensor(DATA[f"img{image}_det_boxes"])[index], boxes_limit)
    assert_within(instances.scores, tensor(DATA[f"img{image}_det_scores"])[index], scores_limit)
    assert (instances.scores.diff() <= 0).all()


def test_candidates_before_nms(stages, exact_model, monkeypatch):
    image, exact, moved = stages
    stream = exact_model.object_stream
    monkeypatch.setattr(stream, "nms_threshold", 1.0)  # an IoU is never larger: nothing goes
    monkeypatch.setattr(stream, "max_detections", 10**6)
    scale = float(DATA[f"img{image}_scale_factor"])
    assert exact.scale[0] == exact.scale[1] == pytest.approx(scale)
    (candidates,) = stream.detect(exact.objects, [exact.image_size], [exact.scale])
    boxes = candidates.pred_boxes.tensor
    labels, expected = (tensor(DATA[f"img{image}_cand_{name}"]) for name in ("labels", "boxes"))
    index = match(candidates.pred_classes, boxes, labels, expected)
    limits = detection_limits(exact, moved, exact_model, candidates)
    assert_within(boxes, expected[index], limits[0])
    assert_within(candidates.scores, tensor(DATA[f"img{image}_cand_scores"])[index], limits[1])


class Correlated(NamedTuple):
    """What the detections' representations make of the pixels', in the authors' order."""

    phi: torch.Tensor  # (N, 2, D)
    logits: torch.Tensor  # (N, h, w, 2)
    probability: torch.Tensor  # (N, H, W)
    posteriors: torch.Tensor  # (N, 2 W + 2 H) of the left, right, top and bottom edge


@pytest.fixture(scope="module")
def correlated(stages, detected, exact_model, moved_model):
    """(in float64, with disturbed weights, what the authors' resizes round)"""
    image, *both = stages
    (detections,) = exact_model.object_stream.detect(
        both[0].objects, [both[0].image_size], [both[0].scale]
    )
    detections = detections[detected[2].argsort()]
    original = tuple(DATA[f"img{image}_ori_shape"].tolist())
    windows = padded_windows(detections.pred_boxes.tensor, 0.1, original)
    chosen = detections.places, detections.pred_classes
    results = []
    for own, model in zip(both, (exact_model, moved_model), strict=True):
        psi, first = own.tensors["pixel_reps"][0], torch.zeros_like(detections.places)
        sizes = zip(original, own.image_size, psi.shape[1:], strict=True)
        matrices = [naive.tap_matrix(*two_resize_taps(*s, 4), s[2]) for s in sizes]
        with torch.no_grad():
            phi = model.object_stream.represent(own.objects, first, detections.places)
            probability = naive.probabilities(psi, phi, windows, *matrices)
            profiles = probability.amax(1), probability.amax(2)
            posteriors = model.mbrm.posteriors(*profiles, decoded(own, model, *chosen)[0])
        logits = torch.einsum("ncd,dhw->nhwc", phi, psi)
        results.append(Correlated(phi, logits, probability, torch.cat(posteriors, 1).nan_to_num()))
    padded = DATA[f"img{image}_pad_shape"].tolist()
    return *results, resized_limits(psi, phi, *matrices, padded).max().item()


def test_representations_similarities_and_probabilities(stages, correlated):
    image, exact, moved, resizing = stages[0], *correlated
    expected = tensor(DATA[f"img{image}_det_reps"]).view_as(exact.phi)
    assert_within(exact.phi, expected, spread(exact.phi, moved.phi))
    assert_sample(exact.logits, DATA, f"img{image}_logits", spread(exact.logits, moved.logits))
    limit = spread(exact.probability, moved.probability) + resizing
    assert_sample(exact.probability, DATA, f"img{image}_mask_prob", limit)


def test_same_masks(detected, correlated):
    """But for pixels so near the threshold that the authors' rounding decides."""
    image, instances, index, *_ = detected
    exact, moved, resizing = correlated
    limit = spread(exact.probability, moved.probability) + resizing
    doubtful = (exact.probability - 0.4).abs() <= limit
    expected = masks_from_bits(DATA[f"img{image}_mask_bits"], *instances.image_size)
    assert not ((instances.pred_masks != expected[index]) & ~doubtful[index]).any()
    assert torch.equal(expected.sum((1, 2)), tensor(DATA[f"img{image}_mask_area"]))


@pytest.fixture(scope="module")
def decided(detected, correlated):
    """(N, 4) edges whose most probable pixel is ahead by more than both may be off; our order."""
    image, _, index, *_ = detected
    limit = spread(correlated[0].posteriors, correlated[1].posteriors)
    return tensor(DATA[f"img{image}_refined_margin"])[index] > 2 * limit


def test_same_refined_boxes(detected, decided):
    image, instances, index, *_ = detected
    refined = to_inclusive(instances.pred_boxes.tensor)
    expected = tensor(DATA[f"img{image}_boxes_refined"])[index]
    assert decided.float().mean() > 0.9
    assert torch.equal(refined[decided], expected[decided])


def test_coco_results_have_the_authors_boxes(detected, decided):
    image, instances, index, boxes_limit, _ = detected
    before = instances.__class__(instances.image_size, **instances.get_fields())
    before.pred_boxes = instances.regressed_boxes
    for name, result in (("before", before), ("after", instances)):
        rows = instances_to_coco_json(result, img_id=1)
        ours = torch.tensor([row["bbox"] for row in rows])
        expected = tensor(DATA[f"img{image}_coco_xywh_{name}"])[index]
        sure = torch.ones_like(expected, dtype=torch.bool)
        if name == "after":
            # x, y, w, h depend on the left, top, left and right, top and bottom edge.
            sure = torch.cat([decided[:, :2], decided[:, :2] & decided[:, 2:]], dim=1)
        assert_within(ours[sure], expected[sure], 2 * boxes_limit)  # a width is of two edges


def matched_index(image, instances):
    boxes = to_inclusive(instances.regressed_boxes.tensor)
    labels = tensor(DATA[f"img{image}_det_labels"])
    return match(instances.pred_classes, boxes, labels, tensor(DATA[f"img{image}_det_boxes"]))


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
    assert_within(ours.pred_boxes.tensor[0], best, gamma(4) * best.abs().max())


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
