"""The product for one row on a CPU, by itself and inside of compiled blocks."""

import copy

import pytest
import torch

from backbone.generate import begin
from backbone.paligemma import PALIGEMMA_TINY, PaliGemma, TextBatch
from backbone.row_product import row_product

# torch.compile imports what torch itself calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def test_compiled_blocks_decode_what_eager_ones_do():
    """One row in bfloat16 on a CPU takes the product of `backbone.row_product` there."""
    torch.manual_seed(0)
    eager = PaliGemma(PALIGEMMA_TINY).to(torch.bfloat16).eval()
    torch.nn.init.normal_(eager.projector.get_parameter("weight"), std=0.3)
    compiled = copy.deepcopy(eager)
    compiled.compile_blocks()
    images = torch.rand(1, 1, 3, 32, 32) * 2 - 1
    tokens = torch.randint(5, 900, (1, 6))
    valid = torch.ones_like(tokens, dtype=torch.bool)
    prompt = TextBatch(images, torch.ones(1, 1, dtype=torch.bool), tokens, valid, ~valid)
    with torch.no_grad():
        steps = []
        for model in (eager, compiled):
            logits, room = begin(model, prompt, 4, 1)
            steps.append([logits, *(model.step(torch.tensor([[t]]), room)[0] for t in (7, 8))])
    for ours, theirs in zip(*steps, strict=True):
        rms = theirs.float().square().mean().sqrt()
        assert (ours - theirs).float().abs().max() < 0.05 * rms  # bfloat16's own noise


@pytest.mark.parametrize(("inputs", "outputs"), [(4096, 96), (96, 4096), (50, 7)])
def test_a_row_product_is_the_product_summed_in_float32(inputs, outputs):
    torch.manual_seed(0)
    x, weight = torch.randn(1, 1, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()
    exact = (x.double() @ weight.double().T).squeeze()
    found = row_product(x, weight)
    assert found.shape == (1, 1, outputs)
    torch.testing.assert_close(found.squeeze().double(), exact, rtol=2**-8, atol=1e-2)
