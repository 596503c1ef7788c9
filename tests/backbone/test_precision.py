"""What is computed in where a CPU has no products in bfloat16."""

import pytest
import torch

from backbone import precision
from backbone.precision import autocast, resolved
from backbone.pretrained import load_model
from vla.assets import PALIGEMMA_TABLETOP


@pytest.mark.parametrize(("has", "auto"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_what_the_device_multiplies(monkeypatch, has, auto):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: has)
    assert [resolved(p, "cpu") for p in ("auto", "float32", "bfloat16")] == [
        auto,
        "float32",
        "bfloat16",
    ]
    a = torch.ones(2, 2)
    for name, wanted in (("auto", auto), ("float32", "float32"), ("bfloat16", "bfloat16")):
        with autocast("cpu", name):
            assert (a @ a).dtype == getattr(torch, wanted)


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="auto, float32 or bfloat16, not 'half'"):
        resolved("half", "cpu")


@pytest.mark.parametrize(
    ("has", "dtype"), [(False, "bfloat16"), (False, "float32"), (True, "bfloat16")]
)
def test_loading_warns_of_weights_that_the_device_is_slow_with(monkeypatch, caplog, has, dtype):
    monkeypatch.setattr("backbone.pretrained.multiplies_bfloat16", lambda device: has)
    load_model(PALIGEMMA_TABLETOP, dtype=dtype)
    warned = 'dtype="float32" is faster' in caplog.text
    assert warned == (not has and dtype == "bfloat16")
