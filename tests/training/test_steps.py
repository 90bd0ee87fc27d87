"""What mixed precision computes in, and that a training changes it without harm."""

import pytest
import torch

from rdsnet.training import steps


@pytest.mark.parametrize(
    ("device", "has", "dtype"),
    [
        ("cpu", set(), torch.bfloat16),
        ("cuda", {"float16"}, torch.float16),
        ("cuda", {"float16", "bfloat16"}, torch.bfloat16),
    ],
)
def test_bfloat16_where_a_gpu_has_it(device, has, dtype, monkeypatch):
    monkeypatch.setattr(steps, "device_capabilities", lambda device: frozenset(has))
    assert steps.amp_dtype(device) == dtype


def test_a_training_that_began_in_float16_goes_on_in_bfloat16():
    """Its checkpoint has the scale of gradients, which bfloat16 does not need."""
    model = torch.nn.Linear(2, 1)
    step = steps.AMPStep(model, [], torch.optim.SGD(model.parameters(), lr=0.1))
    assert step.dtype == torch.bfloat16 and not step.grad_scaler.is_enabled()
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    step.load_state_dict({**step.state_dict(), "grad_scaler": scaler.state_dict()})
    assert not step.grad_scaler.is_enabled()
    assert step.grad_scaler.scale(torch.ones(())).item() == 1
