"""Losses, gradients and SGD steps through the public path, against the authors' numbers."""

import contextlib
import copy
from typing import NamedTuple

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from helpers.golden_data import assert_sample, golden, masks_from_bits, ratio_major, tensor
from helpers.rounding import assert_within, probable

from rdsnet.checkpoint.mmdet import _entries
from rdsnet.modeling.object_stream import DensePredictions
from rdsnet.projects.authors_compat import to_continuous

pytestmark = pytest.mark.numeric
NUM_CLASSES = 80
FILES = ("e2e_train_r50", "e2e_train_mixed_r50")
# The authors' name -> ours. That the conversion itself is right is tested by the forward pass.
OUR_NAME = {theirs: ours for theirs, ours, _ in _entries(50, 80, 32)}


def training_batch(data) -> list[dict]:
    """As the README of the project tells."""
    batch = []
    for i in (0, 1):
        height, width = data[f"img{i}_img_shape"].tolist()
        masks = masks_from_bits(data[f"img{i}_gt_masks_bits"], *data[f"img{i}_pad_shape"])
        instances = Instances(
            (height, width),
            gt_boxes=Boxes(to_continuous(tensor(data[f"img{i}_gt_boxes"]))),
            gt_classes=tensor(data[f"img{i}_gt_labels"]) - 1,
            gt_masks=BitMasks(masks[:, :height, :width]),
        )
        image = tensor(data[f"img{i}_image"]).permute(2, 0, 1)
        batch.append({"image": image, "instances": instances})
    return batch


@contextlib.contextmanager
def in_training(model):
    try:
        yield model.train()
    finally:
        model.eval()


@pytest.fixture
def training_model(loaded_model):
    with in_training(loaded_model) as model:
        yield model


class Forward(NamedTuple):
    """A forward pass in training."""

    losses: dict[str, torch.Tensor]
    predictions: DensePredictions
    ground_truth: list[Instances]  # inclusive
    mask_counts: list[int]  # anchors per image that learn masks


@torch.no_grad()
def run(model, data, monkeypatch) -> Forward:
    """Through the public path, watching what it hands on."""
    seen, counts, stream = [], [], model.object_stream
    losses, choose = stream.losses, model.positives_with_masks

    def watched(*args):
        seen.extend(args)
        return losses(*args)

    def counting(*args):
        positives = choose(*args)
        counts.extend(torch.bincount(positives.image_index, minlength=2).tolist())
        return positives

    batch = training_batch(data)
    assert list(model.preprocess_image(batch).tensor.shape[2:]) == data["stack_hw"].tolist()
    with monkeypatch.context() as patch, in_training(model):
        patch.setattr(stream, "losses", watched)
        patch.setattr(model, "positives_with_masks", counting)
        return Forward(model(batch), *seen, counts)


@pytest.fixture(scope="module", params=FILES)
def forward(request, exact_model, moved_model):
    """(golden data, pass in float64, pass with disturbed weights, what adding up the losses of all
    anchors probably rounds, relative)
    """
    data = golden(request.param)
    with pytest.MonkeyPatch.context() as monkeypatch:
        passes = [run(model, data, monkeypatch) for model in (exact_model, moved_model)]
    anchors = sum(len(level) for level in passes[0].predictions.anchors)
    return data, *passes, probable(len(passes[0].ground_truth) * anchors * NUM_CLASSES)


def test_losses_of_a_batch(forward):
    data, exact, moved, adding = forward
    expected = {
        "loss_cls": data["loss_cls"].astype(float).sum(),
        "loss_box_reg": data["loss_bbox"].astype(float).sum(),
        "loss_mask": float(data["loss_mask"][0]),
    }
    assert exact.losses.keys() == expected.keys()
    limits = {n: abs(moved.losses[n] - loss) + adding * loss for n, loss in exact.losses.items()}
    for name, loss in exact.losses.items():
        assert abs(loss - expected[name]) <= limits[name], name
    assert abs(sum(exact.losses.values()) - float(data["loss_total"])) <= sum(limits.values())


def test_number_of_anchors_that_learn_masks(forward):
    data, exact, *_ = forward
    assert exact.mask_counts == data["num_mask_instances"].tolist()


@torch.no_grad()
def losses_of_levels(model, seen: Forward, monkeypatch) -> torch.Tensor:
    """(5, 2): classification and box loss of P3..P7."""
    stream = model.object_stream
    labels, object_index = stream.label_anchors(seen.predictions, seen.ground_truth)
    normalizer = stream.update_normalizer(((labels >= 0) & (labels < NUM_CLASSES)).sum(1))
    anchors = seen.predictions.anchors
    level = torch.cat([torch.full((len(own),), i) for i, own in enumerate(anchors)])
    # A level's own loss is what remains when the anchors of the others are ignored.
    monkeypatch.setattr(stream, "update_normalizer", lambda _: normalizer)
    found = []
    for i in range(5):
        own = torch.where(level == i, labels, -1)
        monkeypatch.setattr(stream, "label_anchors", lambda *_, own=own: (own, object_index))
        losses, _ = stream.losses(seen.predictions, seen.ground_truth)
        found.append([losses["loss_cls"].item(), losses["loss_box_reg"].item()])
    return torch.tensor(found, dtype=torch.float64)


def test_losses_of_each_pyramid_level(forward, exact_model, moved_model, monkeypatch):
    data, *passes, adding = forward
    exact, moved = (
        losses_of_levels(model, seen, monkeypatch)
        for model, seen in zip((exact_model, moved_model), passes, strict=True)
    )
    expected = torch.stack([tensor(data["loss_cls"]), tensor(data["loss_bbox"])], 1)
    assert_within(exact, expected, (moved - exact).abs() + adding * exact)


def authors_gradient(parameters, name: str) -> torch.Tensor:
    """The gradient of a parameter, with channels in the authors' order of anchors."""
    gradient = parameters[OUR_NAME[name]].grad
    if name.startswith("bbox_head.retina_"):
        flat = gradient.reshape(1, len(gradient), -1, 1)
        return ratio_major(flat).view_as(gradient)
    return gradient


def gradients_of(model, data) -> dict[str, torch.Tensor]:
    """By the authors' names, of the parameters that have one."""
    model.zero_grad(set_to_none=True)
    with in_training(model):
        sum(model(training_batch(data)).values()).backward()
    parameters = dict(model.named_parameters())
    names = (n for n in data["param_names"].tolist() if parameters[OUR_NAME[n]].grad is not None)
    found = {name: authors_gradient(parameters, name) for name in names}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_gradients(exact_model, moved_model, name):
    data = golden(name)
    ours, moved = gradients_of(exact_model, data), gradients_of(moved_model, data)
    names, has_grad = data["param_names"].tolist(), data["has_grad"]
    assert list(ours) == [name for name, has in zip(names, has_grad, strict=True) if has]
    norms = dict(zip(names, data["grad_norm"], strict=True))
    # A gradient is a sum over the places of a map, of which there are no more than pixels.
    adding = probable(len(training_batch(data)) * int(data["stack_hw"].prod()))
    limits = {
        name: (moved[name] - gradient).norm() + adding * gradient.norm()
        for name, gradient in ours.items()
    }
    for their_name, gradient in ours.items():
        assert abs(gradient.norm() - norms[their_name]) <= limits[their_name], their_name
    if name == "e2e_train_r50":
        half = torch.finfo(torch.float16)
        for key, their_name in (
            ("retina_rep", "bbox_head.retina_rep.weight"),
            ("conv_reps", "mask_head.conv_reps.weight"),
            ("fpn_lateral0", "neck.lateral_convs.0.conv.weight"),
        ):
            gradient, scale = ours[their_name], float(data[f"grad_{key}_scale"])
            whole = tensor(data[f"grad_{key}"]).double() * scale
            # Stored in half precision, small numbers with an absolute error.
            stored = half.eps / 2 * whole.norm() + half.smallest_normal * half.eps * scale * (
                whole.numel() ** 0.5
            )
            assert (gradient - whole).norm() <= limits[their_name] + stored
            # No number is further off than all of them together.
            assert_sample(gradient, data, f"grad_{key}_f32", float(limits[their_name]))


STEPS = 5


def train(model, data) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(5, 5) three losses, their sum and the gradient's norm; how far every parameter moved."""
    model = copy.deepcopy(model).train()
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    trained = [p for p in trained if not any(p is q for q in model.mbrm.parameters())]
    optimizer = torch.optim.SGD(trained, lr=0.005, momentum=0.9, weight_decay=1e-4)
    batch, curve = training_batch(data), []
    for _ in range(STEPS):
        losses = model(batch)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 35.0)
        names = ("loss_cls", "loss_box_reg", "loss_mask")
        curve.append([*(losses[n].item() for n in names), total.item(), norm.item()])
        optimizer.step()
    moved = {name: p.detach() - initial[name] for name, p in model.named_parameters()}
    return torch.tensor(curve, dtype=torch.float64), moved


@pytest.mark.slow
def test_five_steps_of_sgd(exact_model, moved_model):
    """The steps of float32 drift away from float64's as far as those of disturbed weights do."""
    data = golden("e2e_train_r50")
    (curve, deltas), (moved_curve, moved_deltas) = (
        train(model, data) for model in (exact_model, moved_model)
    )
    drift = (moved_curve / curve - 1).abs().amax(1, keepdim=True)
    assert_within(curve, tensor(data["steps"]), drift * curve)
    initial = dict(exact_model.named_parameters())
    for their_name, norm in zip(data["param_names"].tolist(), data["delta_norm"], strict=True):
        name = OUR_NAME[their_name]
        # The authors' weights are float32: each step rounds them.
        limit = (moved_deltas[name] - deltas[name]).norm() + probable(STEPS) * initial[name].norm()
        assert abs(deltas[name].norm() - norm) <= limit, their_name


def test_a_batch_without_objects_trains(training_model):
    instances = Instances((40, 60), gt_boxes=Boxes(torch.zeros(0, 4)))
    instances.gt_classes = torch.zeros(0, dtype=torch.int64)
    instances.gt_masks = BitMasks(torch.zeros(0, 40, 60))
    image = torch.full((3, 40, 60), 100.0)
    losses = training_model([{"image": image, "instances": instances}])
    sum(losses.values()).backward()
    assert losses["loss_box_reg"] == 0 and losses["loss_mask"] == 0
    assert losses["loss_cls"] > 0
    assert training_model.object_stream.head.rep_pred.weight.grad.abs().sum() == 0
    training_model.zero_grad(set_to_none=True)
