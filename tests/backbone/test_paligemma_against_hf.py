"""Our PaliGemma and Hugging Face's, same random weights, toy size, float32."""

import hf_reference
import pytest
import torch
from hf_reference import assert_close, layout

from backbone.generate import greedy
from backbone.paligemma import TextBatch

BOS, EOS, NEWLINE = 2, 1, 108
TEXTS = [
    ([BOS, 66, 150, 65, NEWLINE], [22, 126, 23, EOS]),
    ([BOS, 128, NEWLINE], [42, 76, 130, 54, 49, EOS]),
    ([BOS, 7, 8, 9, 10, 11, 12, NEWLINE], [33, EOS]),
]
PROMPTS = [(prompt, []) for prompt, _ in TEXTS]


@pytest.fixture(scope="module")
def hf():
    return hf_reference.random_hf(seed=3)


@pytest.fixture(scope="module")
def model(hf):
    ours = hf_reference.load(hf.state_dict())
    hf_reference.never_say_image(ours)
    return ours


def pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    shape = (len(TEXTS), count, 3, 56, 56)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_logits_equal_hugging_faces_whatever_side_is_padded(hf, model, images, left):
    both = layout(TEXTS, pictures(images), left=left)
    with torch.no_grad():
        theirs = hf(**both.hf).logits[both.text_hf]
        ours = model.logits(both.ours)[both.text_ours]
    assert theirs.std() > 0.3, "the logits must be worth comparing"
    theirs[:, hf_reference.IMAGE_TOKEN] = -torch.inf  # as in ours
    assert_close(ours, theirs)


@pytest.mark.parametrize("images", [1, 2])
def test_greedy_tokens_equal_hugging_faces(hf, model, images):
    both = layout(PROMPTS, pictures(images), left=True)
    with torch.no_grad():
        theirs = hf.generate(**both.hf, max_new_tokens=12, do_sample=False, eos_token_id=None)
    start = both.hf["input_ids"].shape[1]
    ours = generate(model, both.ours, eos=None)
    assert len(set(ours.flatten().tolist())) > 5, "varied tokens make the test worth its name"
    assert ours.tolist() == theirs[:, start:].tolist()


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_padding_does_not_change_what_is_generated(model, left):
    images = pictures(1)
    padded = generate(model, layout(PROMPTS, images, left=left).ours, eos=None)
    for row, prompt in enumerate(PROMPTS):
        alone = layout([prompt], images[row : row + 1]).ours
        assert padded[row].tolist() == generate(model, alone, eos=None)[0].tolist()


def test_a_row_that_said_eos_goes_on_with_padding(model):
    batch = layout(PROMPTS, pictures(1)).ours
    free = generate(model, batch, eos=None)
    stop = int(free[0, 4])
    stopped = generate(model, batch, eos=stop)
    for row, said in zip(stopped.tolist(), free.tolist(), strict=True):
        end = said.index(stop) + 1 if stop in said else len(said)
        wanted = said[:end] + [0] * (len(said) - end)
        assert row == wanted[: len(row)]
        assert not any(wanted[len(row) :]), "nothing but padding may be cut off"


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_decoding_with_the_cache_equals_reading_all_at_once(model, left):
    images = pictures(1)
    answers = [[22, 126, 23, 40], [42, 76, 130, 54], [33, 5, 6, 7]]
    texts = [(prompt, answer) for (prompt, _), answer in zip(TEXTS, answers, strict=True)]
    prompts = layout(PROMPTS, images, left=left).ours
    with torch.no_grad():
        whole = layout(texts, images, left=left).ours
        at_once = model.logits(whole)[whole.suffix].unflatten(0, (3, 4))
        _, cache = model.prefill(
            prompts.images, prompts.image_valid, prompts.tokens, prompts.token_valid
        )
        steps = []
        for token in torch.tensor(answers).unbind(1):
            logits, cache = model.decode(token[:, None], cache)
            steps.append(logits[:, 0])
    assert_close(torch.stack(steps, dim=1), at_once)


def test_decoding_several_tokens_at_once_equals_one_by_one(model):
    batch = layout(PROMPTS, pictures(1)).ours
    answer = torch.tensor([[22, 126, 23], [42, 76, 130], [33, 5, 6]])
    with torch.no_grad():
        _, cache = model.prefill(batch.images, batch.image_valid, batch.tokens, batch.token_valid)
        together, _ = model.decode(answer, cache)
        for i, token in enumerate(answer.unbind(1)):
            logits, cache = model.decode(token[:, None], cache)
            assert_close(logits[:, 0], together[:, i])


def test_an_absent_image_changes_nothing_however_it_looks(model):
    one, two = layout(TEXTS, pictures(1)).ours, layout(TEXTS, pictures(2)).ours
    two.images[:, 0] = one.images[:, 0]
    two.image_valid[:, 1] = False
    with torch.no_grad():
        expected = model.logits(one)[one.token_valid]
        assert_close(model.logits(two)[two.token_valid], expected)


def test_uint8_images_are_scaled_inside_the_model(model):
    batch = layout(TEXTS, pictures(1)).ours
    with torch.no_grad():
        assert_close(model.embed_images(pictures(1)), model.embed_images(batch.images))


def generate(model, batch: TextBatch, eos: int | None) -> torch.Tensor:
    return greedy(
        model, batch.images, batch.image_valid, batch.tokens, batch.token_valid, 12, eos=eos
    )
