"""Stored outputs of transformers 5.5.4: PaliGemma, Gemma and SigLIP, float32 (see tests/golden)."""

from pathlib import Path

import hf_reference
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hf_reference import IMAGE_TOKEN, TOY, TOY2, assert_close, never_say_image, our_name
from safetensors.torch import load_file
from torch import Tensor

from backbone.gemma import Gemma, GemmaConfig, TextEmbedding
from backbone.generate import greedy
from backbone.paligemma import TextBatch
from backbone.siglip import SigLIP
from backbone.weights import load_tensors

GOLDEN = Path(__file__).parents[1] / "golden"


def arrays(path: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / path) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


EOS = {"hf_paligemma": 120, "hf_paligemma2": 79}


@pytest.fixture(scope="module", params=EOS)
def folder(request):
    return request.param


@pytest.fixture(scope="module")
def inputs(folder):
    return arrays(f"{folder}/inputs.npz")


@pytest.fixture(scope="module")
def outputs(folder):
    return arrays(f"{folder}/outputs_f32.npz")


@pytest.fixture
def model(folder):
    sizes = TOY2 if folder.endswith("2") else TOY
    return hf_reference.load(load_file(GOLDEN / folder / "model.safetensors"), sizes)


def text_batch(inputs: dict[str, Tensor], case: str) -> tuple[TextBatch, Tensor]:
    """A stored case as our batch, and where Hugging Face's row has the same text tokens."""
    ids, valid = inputs[f"{case}/input_ids"], inputs[f"{case}/attention_mask"].bool()
    pictures = inputs.get(f"{case}/images", inputs["images"])
    text = ids != IMAGE_TOKEN
    pictures = pictures.permute(0, 3, 1, 2).unflatten(0, (ids.shape[0], -1))

    def of_text(x: Tensor) -> Tensor:
        return x[text].view(ids.shape[0], -1)

    batch = TextBatch(
        images=pictures.float() / 127.5 - 1,
        image_valid=torch.ones(pictures.shape[:2], dtype=torch.bool),
        tokens=of_text(ids),
        token_valid=of_text(valid),
        suffix=of_text(inputs[f"{case}/token_type_ids"].bool()),
    )
    return batch, text & valid


@pytest.mark.parametrize("case", ["right", "left", "multi"])
def test_logits_are_hugging_faces(inputs, outputs, model, case):
    batch, theirs = text_batch(inputs, case)
    with torch.no_grad():
        logits = model.logits(batch)
    assert_close(
        logits[batch.token_valid],
        outputs[f"{case}/logits"][theirs],
    )


def test_image_features_are_not_scaled_by_the_width(inputs, outputs, model):
    batch, _ = text_batch(inputs, "right")
    with torch.no_grad():
        features = model.embed_images(batch.images)
    assert_close(features, outputs["image_features"])


@pytest.mark.parametrize("case", ["right", "left"])
def test_hugging_faces_loss_is_the_mean_over_all_answer_tokens(inputs, outputs, model, case):
    batch, _ = text_batch(inputs, case)
    with torch.no_grad():
        loss = mean_over_tokens(model, batch)
    assert_close(loss, outputs[f"{case}/loss"])


def test_gradients_of_the_loss_are_hugging_faces(folder, inputs, model):
    batch, _ = text_batch(inputs, "right")
    mean_over_tokens(model, batch).backward()
    ours = {name: p.grad for name, p in model.named_parameters()}
    stored = arrays(f"{folder}/grads_f32.npz")
    named = {k: our_name(k[5:], model.config) for k in stored}
    norms = {named[k]: v for k, v in stored.items() if k.startswith("norm:")}
    small = {named[k]: v for k, v in stored.items() if k.startswith("grad:")}
    assert norms.keys() == ours.keys()
    for name, norm in norms.items():
        assert abs(ours[name].norm() - norm) <= 1e-6 + 1e-5 * norm, name
    for name, gradient in small.items():
        assert (ours[name] - gradient).abs().max() <= 1e-5 + 1e-4 * gradient.abs().max(), name


@pytest.mark.parametrize("case", ["greedy_noeos", "greedy_eos"])
def test_greedy_tokens_are_hugging_faces(folder, inputs, outputs, model, case):
    batch, _ = text_batch(inputs, "gen")
    tokens = generate(model, batch, 12, EOS[folder] if case == "greedy_eos" else None)
    assert tokens.tolist() == outputs[f"gen/{case}"][:, : tokens.shape[1]].tolist()
    assert not outputs[f"gen/{case}"][:, tokens.shape[1] :].any()


def test_two_images_give_hugging_faces_tokens(inputs, outputs, model):
    batch, _ = text_batch(inputs, "multi")
    row = slice(0, 1)
    prompt = batch.token_valid[0] & ~batch.suffix[0]
    alone = TextBatch(
        batch.images[row],
        batch.image_valid[row],
        batch.tokens[row][:, prompt],
        batch.token_valid[row][:, prompt],
        batch.suffix[row][:, prompt],
    )
    assert generate(model, alone, 10, None).tolist() == outputs["multi/greedy_row0"].tolist()


def test_gemma_alone_has_hugging_faces_hidden_states_logits_and_tokens():
    language, embedding = gemma()
    stored = arrays("gemma_hf/outputs.npz")
    inputs = arrays("gemma_hf/inputs.npz")
    ids, valid = inputs["gemma/input_ids"], inputs["gemma/attention_mask"].bool()
    states = keep_outputs(language.blocks)
    with torch.no_grad():
        hidden, _ = language(embedding(ids), torch.arange(ids.shape[1]).expand_as(ids), valid)
        logits = embedding.logits(hidden)
    expected = stored["gemma/hidden_states"]
    for ours, theirs in zip([embedding(ids), *states[:-1], hidden], expected, strict=True):
        assert_close(ours[valid], theirs[valid])
    assert_close(logits[valid], stored["gemma/logits"][valid])

    row = ids[:1, valid[0]]
    cache, said = None, []
    for _ in range(10):
        block = torch.full_like(row, 0 if cache is None else int(cache.next_block))
        block = block + torch.arange(row.shape[1])
        with torch.no_grad():
            hidden, new = language(embedding(row), block, torch.ones_like(row).bool(), cache)
        cache = new if cache is None else cache.append(new)
        row = embedding.logits(hidden[:, -1:]).argmax(-1)
        said.append(row.item())
    assert said == stored["gemma/greedy_row0"][0].tolist()


def test_siglip_alone_has_hugging_faces_hidden_states():
    tensors = load_file(GOLDEN / "siglip_hf/model.safetensors")
    trunk = {our_name(f"vision_tower.{k}"): v for k, v in tensors.items() if ".head." not in k}
    model = SigLIP(hf_reference.TOY.vision)
    load_tensors(
        model, {k.removeprefix("vision."): v for k, v in trunk.items()}, source="SigLIP's trunk"
    )
    states = keep_outputs([model.embedding, *model.blocks])
    pictures = arrays("siglip_hf/inputs.npz")["images"].permute(0, 3, 1, 2)
    with torch.no_grad():
        out = model(pictures.float() / 127.5 - 1)
    stored = arrays("siglip_hf/outputs.npz")
    assert_close(torch.stack(states), stored["hidden_states"])
    assert_close(out, stored["last_hidden_state"])


def mean_over_tokens(model, batch: TextBatch) -> Tensor:
    wanted = batch.suffix[:, 1:] & batch.token_valid[:, 1:]
    return F.cross_entropy(model.logits(batch)[:, :-1][wanted], batch.tokens[:, 1:][wanted])


def generate(model, batch: TextBatch, length: int, eos: int | None) -> Tensor:
    never_say_image(model)
    return greedy(
        model, batch.images, batch.image_valid, batch.tokens, batch.token_valid, length, eos=eos
    )


def gemma() -> tuple[Gemma, TextEmbedding]:
    tensors = load_file(GOLDEN / "gemma_hf/model.safetensors")
    named = {our_name(f"language_{key}"): value for key, value in tensors.items()}
    table = named.pop("embedding.weight")
    embedding = TextEmbedding(vocab=table.shape[0], width=table.shape[1])
    load_tensors(embedding, {"weight": table}, source="Gemma's token table")
    language = Gemma(GemmaConfig(width=64, depth=3, mlp=96, heads=4, kv_heads=1, head_dim=16))
    own = {key.removeprefix("language."): value for key, value in named.items()}
    load_tensors(language, own, source="Gemma")
    return language, embedding


def keep_outputs(modules) -> list[Tensor]:
    """A list that fills with what each module gives out during the next forward."""
    outputs: list[Tensor] = []

    def keep(module, inputs, output):
        outputs.append(output[0] if isinstance(output, tuple) else output)

    for module in modules:
        module.register_forward_hook(keep)
    return outputs
