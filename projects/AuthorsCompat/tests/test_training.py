"""Losses, gradients and SGD steps through the public path, against the authors' numbers."""

import copy

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from helpers.golden_data import assert_sample, golden, masks_from_bits, ratio_major, tensor

from rdsnet.checkpoint.mmdet import _entries
from rdsnet.projects.authors_compat import to_continuous

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


@pytest.fixture
def training_model(loaded_model):
    yield loaded_model.train()
    loaded_model.eval()


@pytest.fixture(scope="module", params=FILES)
def forward(request, loaded_model):
    """One training forward pass: golden data, losses, and mask-learning anchors per image."""
    data, counts = golden(request.param), []
    choose = loaded_model.positives_with_masks

    def counting(*args):
        positives = choose(*args)
        counts.extend(torch.bincount(positives.image_index, minlength=2).tolist())
        return positives

    loaded_model.positives_with_masks = counting
    try:
        with torch.no_grad():
            losses = loaded_model.train()(training_batch(data))
    finally:
        del loaded_model.positives_with_masks
        loaded_model.eval()
    return data, losses, counts


def test_losses_of_a_batch(forward):
    data, losses, _ = forward
    assert sorted(losses) == ["loss_box_reg", "loss_cls", "loss_mask"]
    assert losses["loss_cls"].item() == pytest.approx(data["loss_cls"].sum(), rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(data["loss_bbox"].sum(), rel=1e-5)
    assert losses["loss_mask"].item() == pytest.approx(data["loss_mask"][0], rel=1e-5)
    total = sum(losses.values()).item()
    assert total == pytest.approx(float(data["loss_total"]), rel=1e-5)


def test_number_of_anchors_that_learn_masks(forward):
    data, _, counts = forward
    assert counts == data["num_mask_instances"].tolist()


@pytest.mark.parametrize("name", FILES)
def test_losses_of_each_pyramid_level(training_model, name, monkeypatch):
    data, model = golden(name), training_model
    stream = model.object_stream
    batch = training_batch(data)
    gt_instances = [x["instances"] for x in batch]
    for gt in gt_instances:
        gt.gt_boxes = Boxes(gt.gt_boxes.tensor - torch.tensor([0, 0, 1, 1]))
    with torch.no_grad():
        images = model.preprocess_image(batch)
        assert list(images.tensor.shape[2:]) == data["stack_hw"].tolist()
        predictions = stream(model.backbone(images.tensor))
        labels, object_index = stream.label_anchors(predictions, gt_instances)
        positives = ((labels >= 0) & (labels < stream.num_classes)).sum(1)
        normalizer = stream.update_normalizer(positives)
        level = torch.cat([torch.full((len(a),), i) for i, a in enumerate(predictions.anchors)])
        # A level's own loss is what remains when the anchors of the others are ignored.
        monkeypatch.setattr(stream, "update_normalizer", lambda _: normalizer)
        for i in range(5):
            own = torch.where(level == i, labels, -1)
            monkeypatch.setattr(stream, "label_anchors", lambda *_, own=own: (own, object_index))
            losses, _ = stream.losses(predictions, gt_instances)
            expected = (data["loss_cls"][i], data["loss_bbox"][i])
            for loss, value in zip(losses.values(), expected, strict=True):
                assert loss.item() == pytest.approx(value, rel=1e-4, abs=1e-7), f"P{i + 3}"


def authors_gradient(parameters, name: str) -> torch.Tensor:
    """The gradient of a parameter, with channels in the authors' order of anchors."""
    gradient = parameters[OUR_NAME[name]].grad
    if name.startswith("bbox_head.retina_"):
        flat = gradient.reshape(1, len(gradient), -1, 1)
        return ratio_major(flat).view_as(gradient)
    return gradient


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_gradients(training_model, name):
    data, model = golden(name), training_model
    model.zero_grad(set_to_none=True)
    sum(model(training_batch(data)).values()).backward()
    parameters = dict(model.named_parameters())
    for their_name, has_grad, norm in zip(
        data["param_names"].tolist(), data["has_grad"], data["grad_norm"], strict=True
    ):
        gradient = parameters[OUR_NAME[their_name]].grad
        assert (gradient is not None) == bool(has_grad), their_name
        if has_grad:
            assert gradient.norm().item() == pytest.approx(norm, rel=1e-3), their_name
    if name == "e2e_train_r50":
        for key, their_name in (
            ("retina_rep", "bbox_head.retina_rep.weight"),
            ("conv_reps", "mask_head.conv_reps.weight"),
            ("fpn_lateral0", "neck.lateral_convs.0.conv.weight"),
        ):
            ours = authors_gradient(parameters, their_name)
            whole = tensor(data[f"grad_{key}"]) * float(data[f"grad_{key}_scale"])
            # Stored in half precision.
            assert (ours - whole).norm() < 2e-3 * whole.norm()
            assert_sample(ours, data, f"grad_{key}_f32", relative=5e-4)
    model.zero_grad(set_to_none=True)


@pytest.mark.slow
def test_five_steps_of_sgd(training_model):
    data = golden("e2e_train_r50")
    model = copy.deepcopy(training_model)
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    trained = [p for p in trained if not any(p is q for q in model.mbrm.parameters())]
    optimizer = torch.optim.SGD(trained, lr=0.005, momentum=0.9, weight_decay=1e-4)
    batch = training_batch(data)
    for step, (expected, noise) in enumerate(zip(data["steps"], data["steps_noise"], strict=True)):
        losses = model(batch)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 35.0)
        names = ("loss_cls", "loss_box_reg", "loss_mask")
        ours = [*(losses[n].item() for n in names), total.item(), norm.item()]
        # Float32 kernels let the steps drift apart; steps_noise is one sample of by how much.
        tolerance = 5 * noise.max() + 1e-5
        assert ours == pytest.approx(expected.tolist(), rel=tolerance), f"step {step}"
        optimizer.step()
    moved = dict(model.named_parameters())
    for their_name, norm in zip(data["param_names"].tolist(), data["delta_norm"], strict=True):
        name = OUR_NAME[their_name]
        delta = (moved[name] - initial[name]).norm().item()
        assert delta == pytest.approx(norm, rel=2e-2, abs=1e-9), their_name


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
