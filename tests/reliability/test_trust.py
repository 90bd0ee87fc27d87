"""Files that want to run code: checkpoints and configs made to leave a trace when they succeed."""

import collections
import contextlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from reliability import tiny

from rdsnet import get_cfg
from rdsnet.checkpoint import Checkpointer, load_config, read_checkpoint
from rdsnet.cli import main
from rdsnet.prediction.predictor import Predictor


class Malicious:
    """When it is unpickled, a file appears."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.write_text, (self.trace, "I have run code on your machine")


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "trace"


@pytest.fixture(params=["model.pth", "legacy.pth", "model.pkl", "model.pyth", "nested.pkl"])
def malicious_file(request, tmp_path, trace):
    path = tmp_path / request.param
    content = {"model": {"weight": np.ones(3, np.float32)}, "__author__": Malicious(trace)}
    if request.param == "nested.pkl":
        array = np.empty(1, dtype=object)
        array[0] = Malicious(trace)
        content = {"model": {"weight": array}, "__author__": "someone"}
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        content["model"] = {"weight": torch.ones(3)}
        torch.save(content, path, _use_new_zipfile_serialization=request.param != "legacy.pth")
    return str(path)


def test_nothing_runs_and_the_message_says_what_to_do(malicious_file, trace):
    with pytest.raises(ValueError, match="could run foreign code.*add --trust-checkpoint"):
        Checkpointer(torch.nn.Linear(2, 2)).load(malicious_file)
    assert not trace.exists()


def test_the_file_is_dangerous_indeed_and_trust_reads_it(malicious_file, trace):
    read_checkpoint(malicious_file, trust=True)
    assert trace.exists()


@pytest.mark.parametrize("command", ["train", "eval", "predict", "fit-mbrm", "convert"])
@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl"])
def test_every_command_refuses_it(data, tmp_path, trace, capsys, command, name):
    weights = tmp_path / name
    content = {"model": Malicious(trace), "__author__": "someone"}
    weights.write_bytes(pickle.dumps(content))
    if name == "evil.pth":
        torch.save(content, weights)
    options = tiny.options(data, tmp_path / "output", 1, "DATASETS.TEST", "('tiny_val',)")
    arguments = ["--config-file", tiny.SMALL]
    if command == "predict":
        arguments += ["--weights", str(weights), "--input", data["val_images"]]
        arguments += ["--output", str(tmp_path / "predictions"), "--opts", *options]
    elif command == "convert":
        arguments = [str(weights), str(tmp_path / "converted.pth")]
    else:
        arguments += [*options, "MODEL.WEIGHTS", str(weights)]
    assert main([command, *arguments]) == 2
    assert "--trust-checkpoint" in capsys.readouterr().err
    assert not trace.exists()


def test_predictor_refuses_it(data, tmp_path, trace):
    cfg = load_config(tiny.SMALL, tiny.options(data, tmp_path, 1))
    cfg.MODEL.WEIGHTS = str(tmp_path / "evil.pkl")
    Path(cfg.MODEL.WEIGHTS).write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(ValueError, match="foreign code"):
        Predictor(cfg)
    assert not trace.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_the_model_zoo_are_read(tmp_path, protocol):
    model = torch.nn.Linear(3, 2)
    weights = collections.OrderedDict(
        weight=np.arange(6, dtype=np.float32).reshape(2, 3), bias=np.float32([7, 8])
    )
    content = {
        "model": weights,
        "__author__": "Detectron2 Model Zoo",
        "notes": [1, 2.5, None, True, (b"bytes", "text"), {"set"}, np.float64(3), np.int64(4)],
    }
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    rest = Checkpointer(model).load(str(path))
    assert model.weight.tolist() == [[0, 1, 2], [3, 4, 5]] and model.bias.tolist() == [7, 8]
    assert rest["notes"] == content["notes"]


def test_pickles_of_caffe2_are_read(tmp_path):
    content = {"blobs": {"weight": np.ones((2, 3), np.float32), "weight_momentum": np.zeros(1)}}
    path = tmp_path / "caffe2.pkl"
    path.write_bytes(pickle.dumps(content, protocol=2))
    read = Checkpointer(torch.nn.Linear(3, 2))._load_file(str(path))
    assert read["matching_heuristics"] and list(read["model"]) == ["weight"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80", b"not a pickle", pickle.dumps([1, 2])[:-1], b"cos\nsystem\n(S'true'\ntR."],
)
def test_damaged_pickles_are_refused(tmp_path, content):
    path = tmp_path / "damaged.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged.pkl"):
        Checkpointer(torch.nn.Linear(3, 2)).load(str(path))


CODE = """\
MODEL:
  WEIGHTS: !!python/object/apply:os.mkdir ["{}"]
"""


@pytest.mark.parametrize("through_base", [False, True])
@pytest.mark.parametrize("way", ["load_config", "get_cfg", "command line"])
def test_a_malicious_config_is_refused(tmp_path, trace, capsys, through_base, way):
    path = tmp_path / "evil.yaml"
    path.write_text(CODE.format(trace))
    if through_base:
        (tmp_path / "outer.yaml").write_text("_BASE_: evil.yaml\nSEED: 3\n")
        path = tmp_path / "outer.yaml"
    if way == "load_config":
        with pytest.raises(ValueError, match="cannot be used: could not determine a constructor"):
            load_config(str(path))
    elif way == "get_cfg":
        with pytest.raises(Exception, match="could not determine a constructor"):
            get_cfg().merge_from_file(str(path))
    else:
        arguments = ["predict", "--config-file", str(path), "--weights", str(path), "--input", "x"]
        assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert not trace.exists()


def test_the_config_is_dangerous_indeed(tmp_path, trace):
    path = tmp_path / "evil.yaml"
    path.write_text(CODE.format(trace))
    with contextlib.suppress(Exception):  # it has no value for MODEL.WEIGHTS
        get_cfg().merge_from_file(str(path), allow_unsafe=True)
    assert trace.exists()


def test_options_on_the_command_line_are_data(data, tmp_path, trace):
    option = f"__import__('pathlib').Path('{trace}').touch()"
    cfg = load_config(tiny.SMALL, [*tiny.options(data, tmp_path, 1), "MODEL.WEIGHTS", option])
    assert cfg.MODEL.WEIGHTS == option and not trace.exists()
