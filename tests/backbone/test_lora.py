"""Adapters: nothing at the start, PEFT's numbers and files, merged without a trace."""

import json
import re
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from backbone.lora import (
    LoRAConfig,
    LoRALinear,
    adapters,
    add_lora,
    load_adapters,
    merged,
    save_adapters,
)
from backbone.paligemma import PALIGEMMA_TINY, PaliGemma, TextBatch

CONFIG = LoRAConfig(rank=3, alpha=6.0)
LAYERS = PALIGEMMA_TINY.language.depth * 7


@pytest.fixture
def model() -> PaliGemma:
    torch.manual_seed(0)
    return PaliGemma(PALIGEMMA_TINY)


@pytest.fixture
def batch() -> TextBatch:
    generator = torch.Generator().manual_seed(1)
    size = PALIGEMMA_TINY.vision.resolution
    tokens = torch.randint(4, 200, (2, 7), generator=generator)
    return TextBatch(
        torch.rand(2, 1, 3, size, size, generator=generator) * 2 - 1,
        torch.ones(2, 1, dtype=torch.bool),
        tokens,
        torch.ones_like(tokens, dtype=torch.bool),
        torch.arange(7).expand(2, 7) > 3,
    )


def disturb(model: nn.Module) -> None:
    """Adapters as if they had learned something."""
    generator = torch.Generator().manual_seed(2)
    for _, layer in adapters(model):
        layer.lora_B.data.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.1)


def test_new_adapters_change_nothing_and_alone_get_gradients(model, batch):
    with torch.no_grad():
        before = model.logits(batch)
    names = add_lora(model, CONFIG)
    assert len(names) == LAYERS
    assert all(".blocks." in name for name in names)
    assert torch.equal(model.logits(batch), before)
    model(batch).backward()
    learn = {name for name, p in model.named_parameters() if p.grad is not None}
    wanted = {f"{name}.{part}" for name in names for part in ("lora_A", "lora_B")}
    assert learn == wanted


def test_what_is_named_beside_the_adapters_learns_too(model):
    add_lora(model, LoRAConfig(targets=r".*q_proj", train=("projector",)))
    learn = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in learn if "lora" not in name} == {"projector.weight", "projector.bias"}


def test_a_merged_model_computes_the_same_with_plain_layers(model, batch):
    plain = {name: p.shape for name, p in model.named_parameters()}
    add_lora(model, CONFIG)
    disturb(model)
    whole = merged(model)
    assert isinstance(whole, PaliGemma)
    assert {name: p.shape for name, p in whole.named_parameters()} == plain
    with torch.no_grad():
        expected, found = model.logits(batch), whole.logits(batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert sum(1 for _ in adapters(model)) == LAYERS  # the model itself keeps them
    assert whole.embedding.weight is model.embedding.weight


def test_adapters_come_back_from_their_folder(tmp_path, batch):
    torch.manual_seed(0)
    model, other = PaliGemma(PALIGEMMA_TINY), PaliGemma(PALIGEMMA_TINY)
    other.load_state_dict(model.state_dict())
    add_lora(model, CONFIG)
    disturb(model)
    save_adapters(model, tmp_path)
    load_adapters(other, tmp_path)
    with torch.no_grad():
        assert torch.equal(other.logits(batch), model.logits(batch))


@dataclass
class Sizes:
    model_type: str = "custom"

    def to_dict(self) -> dict:
        return vars(self)


class Small(nn.Module):
    """Two layers with names such as ours have, for PEFT to wrap."""

    def __init__(self):
        super().__init__()
        self.config = Sizes()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(5, 6), "o_proj": nn.Linear(6, 5)}) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            x = x + block["o_proj"](torch.tanh(block["q_proj"](x)))
        return x


def small() -> Small:
    torch.manual_seed(0)
    return Small()


def test_peft_loads_ours_and_computes_the_same(tmp_path):
    model, x = small(), torch.randn(3, 5)
    add_lora(model, LoRAConfig(rank=2, alpha=5.0, targets=r"blocks\.\d\.(q|o)_proj"))
    disturb(model)
    save_adapters(model, tmp_path)
    theirs = PeftModel.from_pretrained(small(), str(tmp_path))  # pyright: ignore
    torch.testing.assert_close(theirs(x), model(x), atol=1e-6, rtol=1e-6)
    assert (model(x) - small()(x)).abs().max() > 0.01


def test_ours_loads_pefts_and_computes_the_same(tmp_path):
    x = torch.randn(3, 5)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj"], init_lora_weights=False)
    theirs = get_peft_model(small(), config)  # pyright: ignore
    theirs.save_pretrained(str(tmp_path))
    model = small()
    load_adapters(model, tmp_path)
    torch.testing.assert_close(model(x), theirs(x), atol=1e-6, rtol=1e-6)
    assert [name for name, _ in adapters(model)] == ["blocks.0.q_proj", "blocks.1.q_proj"]


def test_a_layer_without_memory_gets_adapters_without_memory():
    with torch.device("meta"):
        layer = LoRALinear(nn.Linear(4, 4), 2, 2.0)
    assert layer.lora_A.is_meta
    assert layer.lora_B.is_meta


def test_bad_input_is_told_apart(model, tmp_path):
    with pytest.raises(ValueError, match=r"lora\.rank is 0"):
        LoRAConfig(rank=0)
    with pytest.raises(ValueError, match=r"lora\.targets '\(' is no pattern"):
        LoRAConfig(targets="(")
    with pytest.raises(ValueError, match=r"matches no linear layer; there are vision\.blocks"):
        add_lora(model, LoRAConfig(targets="nothing"))
    with pytest.raises(ValueError, match=r"lora\.train has 'head', under which"):
        add_lora(model, LoRAConfig(train=("head",)))
    with pytest.raises(ValueError, match="no adapters; add some"):
        save_adapters(model, tmp_path)
    add_lora(model, CONFIG)
    save_adapters(model, tmp_path)
    with pytest.raises(ValueError, match=re.escape("not in the model: base_model.model.")):
        load_adapters(nn.Linear(2, 2), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ValueError, match="is a LORA with use_dora; expected a plain LORA"):
        load_adapters(PaliGemma(PALIGEMMA_TINY), tmp_path)
