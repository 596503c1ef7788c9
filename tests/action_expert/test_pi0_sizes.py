"""π0 at full size, on the meta device: nothing is allocated."""

import dataclasses

import pytest
import torch

from action_expert.expert import ActionExpertConfig
from backbone.gemma import GEMMA_300M
from backbone.paligemma import PALIGEMMA_3B_224
from vla.pi0 import PI0, Pi0, Pi0Config


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_pi0_has_openpis_number_of_useful_parameters():
    with torch.device("meta"):
        model = Pi0(PI0)
    assert count(model) == 3_238_048_528
    assert count(model.backbone) == 2_923_335_408
    assert count(model.expert.gemma) == 311_463_936 + 1_024
    assert count(model.expert) - count(model.expert.gemma) == 3_248_160


def test_an_expert_that_cannot_read_the_cache_is_refused():
    shallow = dataclasses.replace(GEMMA_300M, depth=17)
    with pytest.raises(ValueError, match="expert's depth is 17 but the backbone's is 18"):
        Pi0Config(PALIGEMMA_3B_224, ActionExpertConfig(shallow))
