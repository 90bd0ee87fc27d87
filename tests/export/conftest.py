"""A tiny model that sees something, and a checkpoint of it."""

import pytest
import torch
from helpers.exporting import SIZE, empty_image, random_image, tiny_config, untrained

from rdsnet.checkpoint.description import save_model
from rdsnet.export.graph import ImageToObjects


@pytest.fixture(scope="session")
def model():
    """It has learnt to see objects in random colours and none in a grey image."""
    model = untrained(tiny_config())
    head, images = model.object_stream.head, [empty_image(), random_image(*SIZE, seed=9)]

    def logits():
        predictions = [ImageToObjects(model).predict(image)[1].logits for image in images]
        return [torch.cat(levels, 1) for levels in predictions]

    optimizer = torch.optim.Adam(head.cls_score.parameters(), 0.01)
    for _ in range(20):
        empty, full = logits()
        optimizer.zero_grad()
        (empty.logsumexp(1) - full.mean(1)).sum().backward()
        optimizer.step()
    with torch.no_grad():
        empty, full = (x.sigmoid() for x in logits())
    model.object_stream.score_threshold = float(empty.max()) + 1e-4
    assert (full > empty.max() + 1e-4).sum() > 200
    return model


@pytest.fixture(scope="session")
def weights(model, tmp_path_factory):
    """A checkpoint that holds its config."""
    threshold = model.object_stream.score_threshold
    cfg = tiny_config("MODEL.RETINANET.SCORE_THRESH_TEST", threshold)
    path = tmp_path_factory.mktemp("weights") / "model_best.pth"
    save_model(path, model.state_dict(), cfg)
    return str(path)
