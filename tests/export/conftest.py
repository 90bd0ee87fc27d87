"""A tiny model that sees something, and a checkpoint of it."""

import pytest
import torch
from helpers.exporting import SIZE, empty_image, need_onnx, random_image, tiny_config, untrained

from rdsnet.checkpoint.description import save_model
from rdsnet.cli import main
from rdsnet.export.graph import ImageToObjects


@pytest.fixture(scope="session")
def model():
    """It has learnt to see objects in random colours and none in a grey image.

    That is: 200 anchors and classes of a coloured image score higher than any of the grey one.
    """
    model = untrained(tiny_config())
    head, images = model.object_stream.head, [empty_image(), random_image(*SIZE, seed=9)]

    def logits():
        predictions = [ImageToObjects(model).predict(image)[1].logits for image in images]
        return [torch.cat(levels, 1) for levels in predictions]

    optimizer = torch.optim.Adam(head.cls_score.parameters(), 0.01)
    for _ in range(200):
        empty, full = logits()
        highest, needed = empty.max(), full.flatten().topk(200).values[-1]
        if needed > highest + 0.1:
            break
        optimizer.zero_grad()
        (empty.logsumexp(1) - full.mean(1)).sum().backward()
        optimizer.step()
    else:
        pytest.fail("the model has not learnt the difference")
    model.object_stream.score_threshold = float(((highest + needed) / 2).sigmoid())
    return model


@pytest.fixture(scope="session")
def weights(model, tmp_path_factory):
    """A checkpoint that holds its config."""
    threshold = model.object_stream.score_threshold
    cfg = tiny_config("MODEL.RETINANET.SCORE_THRESH_TEST", threshold)
    path = tmp_path_factory.mktemp("weights") / "model_best.pth"
    save_model(path, model.state_dict(), cfg)
    return str(path)


@pytest.fixture(scope="session")
def onnx_file(weights, tmp_path_factory):
    """The path of an ONNX file of it, made by the command."""
    need_onnx()
    folder = tmp_path_factory.mktemp("exported") / "new folder"
    path = folder / "model.onnx"
    assert main(["export", "--weights", weights, "--output", str(path)]) == 0
    assert [file.name for file in folder.iterdir()] == [path.name]
    return str(path)
