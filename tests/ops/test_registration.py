"""The compiled operators as PyTorch sees them: schemas, fake kernels, autograd, torch.compile."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ops.scenes import random_scene

from rdsnet import ops
from rdsnet.ops import compiled, resize_taps
from rdsnet.ops.masks import encode_runs

needs_compiled = pytest.mark.skipif(
    compiled.active_path() == "pytorch", reason=f"not compiled: {compiled.why_not_compiled()}"
)


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> str:
    if request.param not in compiled.active_path():
        pytest.skip(f"the operators are {compiled.active_path()}")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def operator_calls(device: str) -> dict[str, tuple]:
    scene = random_scene(0, dims=4, height=6, width=7, objects=5, dtype=torch.float32)
    scene = type(scene)(*(tensor.to(device) for tensor in scene))
    psi, phi = scene.psi.requires_grad_(), scene.phi.requires_grad_()
    rows, columns = (taps.to(device) for taps in _taps())
    taps = *rows, *columns
    masks = ops.assemble_masks(psi[0].detach(), phi.detach(), scene.windows, rows, columns)
    logits = torch.ops.rdsnet.correlate(psi, phi, *scene[2:4])[0].detach()
    masks_of_images = [torch.rand(3, *size, device=device) > 0.5 for size in ((23, 28), (24, 21))]
    own_index = scene.target_index.clamp(max=2)
    return {
        "correlate": (psi, phi, *scene[2:4]),
        "correlate_backward": (logits, psi.detach(), phi.detach(), *scene[2:4]),
        "mask_ohem_loss": (psi, phi, *scene[2:], 1.0),
        "mask_ohem_loss_from_images": (psi, phi, *scene[2:4], masks_of_images, own_index, 4, 1.0),
        "mask_ohem_loss_at_pixels": (
            *(psi, phi, scene.image_index, 3 * scene.windows, masks_of_images, own_index),
            *(
                x
                for own in (resize_taps(24, 24, 6, 4), resize_taps(28, 28, 7, 4))
                for x in own.to(device)
            ),
            1.0,
        ),
        "mask_ohem_loss_backward": (
            torch.ops.rdsnet.mask_ohem_loss(psi, phi, *scene[2:], 1.0)[1].detach(),
            *(torch.rand(5, device=device), psi.detach(), phi.detach(), *scene[2:4]),
        ),
        "assemble_masks": (psi[0].detach(), phi.detach(), scene.windows, *taps, 0.4),
        "encode_runs": (masks.run_lengths, masks.run_offsets),
        "mask_targets": (scene.targets, scene.windows[:3], 3, 2, 2),
        "expanded_windows": (
            10 * torch.rand(5, 4),
            1.5,
            [6, 7, 5, 6],
            torch.tensor([0, 1, 1, 0, 1]),
        ),
        "resize_taps": (12, 0.5, 6),
        "refine_edges": (
            masks.column_maxima,
            masks.row_maxima,
            scene.windows.float(),
            torch.randn(1, 1, 9),
            torch.zeros(1),
            *(0.05, 1.0, -5.4, 3.3, 0.4),
        ),
    }


def _taps():
    return resize_taps(12, 24, 6, 4), resize_taps(20, 28, 7, 4)


@needs_compiled
@pytest.mark.parametrize(
    "name",
    [
        "correlate",
        "correlate_backward",
        "mask_ohem_loss",
        "mask_ohem_loss_from_images",
        "mask_ohem_loss_at_pixels",
        "mask_ohem_loss_backward",
        "assemble_masks",
        "encode_runs",
        "mask_targets",
        "expanded_windows",
        "resize_taps",
        "refine_edges",
    ],
)
def test_opcheck(name, device):
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    if not has_kernel(f"rdsnet::{name}", device.upper()):
        pytest.skip(f"{name} has no kernel for {device}")
    operator = getattr(torch.ops.rdsnet, name).default
    results = torch.library.opcheck(operator, operator_calls(device)[name])
    assert set(results.values()) == {"SUCCESS"}, results


@pytest.fixture
def dynamic_output_shapes():
    """What fullgraph=True implies, but for the oldest torch: results may have data for a size."""
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        yield


@needs_compiled
@pytest.mark.usefixtures("dynamic_output_shapes")
def test_training_compiles_into_one_graph(device):
    # Taken apart out here: the compiler of torch 2.6 cannot slice a named tuple.
    scene = random_scene(1, dtype=torch.float64)  # where rounding is far below assert_close's 1e-7
    psi, phi, image_index, windows, *targets = (tensor.to(device) for tensor in scene)
    representations = psi, phi

    def loss(psi, phi):
        losses = ops.mask_ohem_loss(psi, phi, image_index, windows, *targets, 1)
        logits, _ = ops.correlate(psi, phi, image_index, windows)
        return losses.sum() + logits.square().mean()

    def value_and_gradients(function):
        psi, phi = (x.clone().requires_grad_() for x in representations)
        value = function(psi, phi)
        value.backward()
        return value.detach(), psi.grad, phi.grad

    compiled_loss = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(value_and_gradients(compiled_loss), value_and_gradients(loss)):
        torch.testing.assert_close(mine, theirs)


@needs_compiled
@pytest.mark.usefixtures("dynamic_output_shapes")
def test_inference_compiles_into_one_graph(device):
    scene = random_scene(2)
    scene = type(scene)(*(tensor.to(device) for tensor in scene))
    taps = [taps.to(device) for taps in (resize_taps(50, 52, 13, 4), resize_taps(140, 148, 37, 4))]

    def assemble(psi, phi, windows):
        masks = ops.assemble_masks(psi, phi, windows, *taps)
        return masks.areas, masks.row_maxima, masks.run_lengths

    arguments = scene.psi[0], scene.phi, scene.windows * 4
    fast = torch.compile(assemble, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(fast(*arguments), assemble(*arguments)):
        assert torch.equal(mine, theirs)


@needs_compiled
def test_encoding_agrees_on_every_device(device):
    lengths = [0, 1, 15, 16, 31, 32, 511, 512, 1023, 1024, 16383, 16384, 32767, 32768, 1 << 20]
    lengths = torch.tensor(lengths * 40 + [7] + lengths[::-1])
    offsets = torch.tensor([0, 0, 600, 601, 616])
    expected = encode_runs(lengths, offsets)
    found = torch.ops.rdsnet.encode_runs(lengths.to(device), offsets.to(device))
    for mine, theirs in zip(found, expected):
        assert torch.equal(mine.cpu(), theirs)


@needs_compiled
@pytest.mark.parametrize("offsets", [[0, 3], [1, 4], [0, 5, 4], [0, 3, 2, 4], [0, 2, 9]])
def test_run_offsets_that_do_not_fit_are_refused(device, offsets):
    with pytest.raises(ValueError, match="run_offsets must"):
        torch.ops.rdsnet.encode_runs(
            torch.ones(4, dtype=torch.int64, device=device), torch.tensor(offsets, device=device)
        )


@needs_compiled
def test_second_derivatives_are_refused_not_wrong():
    psi, phi, index, windows = random_scene(3)[:4]
    psi.requires_grad_()
    logits, _ = ops.correlate(psi, phi, index, windows)
    with pytest.raises(RuntimeError, match="second derivatives"):
        (gradient,) = torch.autograd.grad(logits.square().sum(), psi, create_graph=True)
        gradient.sum().backward()


def test_first_use_is_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(compiled, "_announced", False)
    scene = random_scene(4)
    with caplog.at_level(logging.INFO, logger="rdsnet"):
        ops.correlate(*scene[:4])
        ops.correlate(*scene[:4])
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and compiled.active_path() in messages[0]


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout


def test_environment_variable_forces_pytorch_and_import_prints_nothing():
    code = "from rdsnet.ops import compiled; print(compiled.active_path(), compiled._problem)"
    assert python("import rdsnet.ops") == ""
    output = python(code, RDSNET_DISABLE_OPS="1")
    assert output.startswith("pytorch") and "RDSNET_DISABLE_OPS" in output


def test_operators_and_the_formulas_built_on_them_need_torch_alone():
    absent = ("detectron2", "fvcore", "torchvision", "pycocotools", "cv2", "PIL", "matplotlib")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "import rdsnet.ops.self_check\n"
        "import rdsnet.modeling.cropping, rdsnet.modeling.mask_loss, rdsnet.modeling.mbrm\n"
        "print(rdsnet.modeling.mbrm.MBRM().radius)"
    )
    assert python(code).strip() == "4"


def test_the_guide_to_the_sources_names_every_file_once():
    sources = Path(compiled.__file__).parent / "csrc"
    files = [p for p in sources.rglob("*") if p.suffix in (".h", ".cpp", ".cu")]
    named = re.findall(r"^\| `(\S+\.\w+)` \|", (sources / "README.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(path.relative_to(sources).as_posix() for path in files)


def test_library_that_does_not_load_leaves_the_pytorch_path(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(compiled, "_devices", frozenset())
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"not a library")
    assert not compiled.load(broken)
    assert compiled.active_path() == "pytorch"
    assert "could not be loaded" in compiled.why_not_compiled()
    assert "install rdsnet again" in caplog.text


@needs_compiled
def test_loops_for_processors_without_avx2_pass_the_tests_of_the_operators():
    names = ("correlate", "mask_ohem_loss", "mask_ohem_loss_at_pixels", "assemble_masks")
    chosen = "cpu-compiled and not gradcheck and not wrong and not large"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    done = subprocess.run(
        [*command, *(f"tests/ops/test_{name}.py" for name in names)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "RDSNET_OPS_ISA": "generic"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
