"""An evaluation is of a prepared copy of the model, in the precision that was asked for."""

import pytest
import torch

from rdsnet.checkpoint import read_checkpoint
from rdsnet.training import argument_parser
from rdsnet.training.launch import main
from rdsnet.training.trainer import Trainer


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ([], torch.float32),
        (["MODEL.RDSNET.INFERENCE.PRECISION", "bf16"], torch.bfloat16),
    ],
)
def test_evaluation_computes_in_the_precision_of_the_config(model_files, tmp_path, options, dtype):
    seen = []

    class Seen(Trainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            assert not any(parameter.requires_grad for parameter in model.parameters())
            image = torch.zeros(3, 64, 64, dtype=torch.uint8)
            with torch.no_grad():
                features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
            seen.append(features["p3"].dtype)
            return {}

    before = read_checkpoint(model_files["weights"])["model"]
    words = ["--config-file", model_files["config"], "--eval-only"]
    words += ["MODEL.WEIGHTS", model_files["weights"], "OUTPUT_DIR", str(tmp_path)]
    main(argument_parser().parse_args([*words, "TEST.REPORT", "False", *options]), Seen)
    assert seen == [dtype]
    after = read_checkpoint(model_files["weights"])["model"]
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not list(tmp_path.glob("*.pth"))
