"""Which precision inference is computed in; the instructions of the device are made up."""

import pytest
import torch

from rdsnet.modeling.precision import chosen_precision, device_capabilities


@pytest.mark.parametrize(
    ("has", "name", "reason"),
    [
        (set(), "float32", "the processor has no instructions for bfloat16"),
        ({"AVX512_FP16"}, "float32", "no instructions for bfloat16"),
        ({"AVX512_BF16"}, "bf16", "the processor has AVX512_BF16"),
        ({"AMX_BF16"}, "bf16", "the processor has AMX_BF16"),
        ({"AVX512_BF16", "AMX_BF16", "AVX512_FP16"}, "bf16", "has AMX_BF16 and AVX512_BF16"),
        ({"AVX512_BF16", "Intel"}, "float32", "AVX512_BF16 of Intel was no quicker"),
        ({"AVX512_BF16", "AMX_BF16", "Intel"}, "bf16", "has AMX_BF16 and AVX512_BF16"),
        ({"Intel"}, "float32", "no instructions for bfloat16"),
    ],
)
def test_auto_is_bf16_where_the_processor_is_quicker_with_it(has, name, reason):
    chosen, why = chosen_precision("auto", "cpu", frozenset(has))
    assert chosen == name and reason in why and why.startswith("auto")


@pytest.mark.parametrize("has", [{"float16"}, {"float16", "bfloat16"}])
def test_auto_on_a_gpu_is_float32_whatever_it_has(has):
    chosen, why = chosen_precision("auto", "cuda:1", frozenset(has))
    assert chosen == "float32" and "on a GPU" in why


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_float32_is_float32_whatever_there_is(device):
    everything = frozenset({"AVX512_BF16", "AMX_BF16", "bfloat16", "float16"})
    assert chosen_precision("float32", device, everything) == ("float32", "as asked for")


def test_bf16_is_computed_by_every_processor_and_may_be_slower():
    name, why = chosen_precision("bf16", "cpu", frozenset())
    assert name == "bf16" and "may be slower" in why
    assert chosen_precision("bf16", "cpu", frozenset({"AMX_BF16"})) == ("bf16", "as asked for")


@pytest.mark.parametrize(
    ("wanted", "device", "has", "words"),
    [
        ("fp16", "cpu", {"AVX512_BF16"}, "the processor does not compute in float16"),
        ("bf16", "cuda", {"float16"}, "the GPU does not compute in bfloat16"),
        ("int8", "cpu", set(), "must be one of auto, float32, bf16, fp16, got 'int8'"),
        ("half", "cuda", {"float16"}, "MODEL.RDSNET.INFERENCE.PRECISION (--precision)"),
    ],
)
def test_what_the_device_cannot_do_is_refused_with_what_it_can(wanted, device, has, words):
    with pytest.raises(ValueError) as error:
        chosen_precision(wanted, device, frozenset(has))
    assert words in str(error.value)
    assert "float32" in str(error.value)


def test_fp16_is_computed_where_there_are_instructions_for_it():
    for device, has in (("cuda", "float16"), ("cpu", "AMX_FP16"), ("cpu", "AVX512_FP16")):
        assert chosen_precision("fp16", device, frozenset({has}))[0] == "fp16"


def test_capabilities_of_this_processor_are_those_that_the_system_lists():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:
        lines = []
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    if flags is None:
        pytest.skip("the system lists no instructions")
    found = device_capabilities("cpu")
    assert ("Intel" in found) == any("GenuineIntel" in line for line in lines)
    # Of AMX the system has a say of its own.
    assert ("AVX512_BF16" in found) == ("avx512_bf16" in flags)
    assert {name.lower() for name in found - {"Intel"}} <= set(flags)


def test_a_device_that_is_not_there_has_none(monkeypatch):
    """Who asks for it gets to know that by the model, not by this."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_capabilities("cuda") == device_capabilities("mps") == frozenset()


def test_older_versions_of_torch_say_less(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_fp16_supported", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert device_capabilities("cpu") - {"Intel"} == {"AVX512_BF16"}
