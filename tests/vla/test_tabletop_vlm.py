"""What a small PaliGemma is asked about tabletop scenes, held against the scenes themselves."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from backbone.detections import parse_detections
from backbone.mask_codec import CODEC, SMALL_MASK_CODEC, MaskCodec, cut
from backbone.paligemma import PALIGEMMA_TINY
from backbone.pretrained import load_pretrained
from envs.tabletop.scene import COLOURS, EASY, PLATE, SHAPES, STANDARD, Item, Scene, sample_scene
from envs.tabletop.truth import boxes, masks
from vla.config import OptimConfig
from vla.data.tabletop_places import NAMES, Places, TabletopPlaces, telling
from vla.data.tabletop_questions import KINDS, ask
from vla.data.tabletop_text import COUNTED, caption, numbers
from vla.data.tabletop_vlm import (
    BINS,
    MASK_SIZE,
    QUESTIONS,
    SHARES,
    TabletopVLM,
    boxed,
    masked,
    rounded,
)
from vla.training.text_job import TextConfig
from vla.training.vision_job import PlaceNames, VisionConfig
from vla.training.vlm_job import VLMConfig


def table(*things: tuple[str, str, float, float]) -> Scene:
    """A scene of (colour, shape, x, y); objects first."""
    items = tuple(Item(colour, shape) for colour, shape, _, _ in things)
    places = [(x, y) for _, _, x, y in things]
    return Scene(STANDARD, items, places, [None] * len(items), (0.5, 0.5))


SCENE = table(
    ("red", "square", 0.2, 0.3),
    ("red", "circle", 0.8, 0.3),
    ("blue", "square", 0.5, 0.8),
    ("green", PLATE, 0.35, 0.55),
)


def asked(kind: str) -> dict[str, str]:
    questions = (ask(SCENE, np.random.default_rng(i), kind) for i in range(400))
    return {question.text: question.answer for question in questions}


def test_questions_are_answered_by_the_scene():
    colour, count = asked("colour"), asked("count")
    assert colour["what colour is the circle?"] == "red"
    assert colour["what colours are the squares?"] == "blue and red"
    assert colour["what colour is the plate?"] == "green"
    assert count["how many objects are there?"] == "3"
    assert count["how many squares are there?"] == "2"
    assert count["how many triangles are there?"] == "0"
    assert count["how many red things are there?"] == "2"
    presence, relation = asked("presence"), asked("relation")
    assert presence["is there a red square?"] == "yes"
    assert presence["is there a blue circle?"] == "no"  # both words occur, not together
    assert relation["is the red square left of the blue square?"] == "yes"
    assert relation["is the blue square left of the red square?"] == "no"
    assert relation["is the red circle above the green plate?"] == "yes"
    assert not any("red square above the red circle" in text for text in relation)  # same height
    side = asked("side")
    assert side["is the red square left or right of the blue square?"] == "left"
    assert side["is the blue square left or right of the red square?"] == "right"
    assert side["is the red circle above or below the green plate?"] == "above"
    assert not any("red square above or below the red circle" in text for text in side)


@pytest.mark.parametrize("kind", ["presence", "relation"])
def test_half_of_the_yes_or_no_questions_are_answered_by_yes(kind):
    rng = np.random.default_rng(0)
    scenes = (sample_scene(rng, STANDARD) for _ in range(300))
    share = np.mean([ask(scene, rng, kind).answer == "yes" for scene in scenes])
    assert 0.4 < share < 0.6


def test_an_unknown_kind_of_question_is_named():
    with pytest.raises(ValueError, match="no questions of kind 'size'; there are colour, count"):
        ask(SCENE, np.random.default_rng(0), "size")


def test_a_caption_names_objects_from_left_to_right_and_then_plates():
    assert caption(SCENE) == "a red square, a blue square, a red circle and a green plate"


def test_all_numbers_are_those_of_the_questions():
    prompt, answer = numbers(SCENE, np.random.default_rng(0))
    count, said = asked("count"), answer.split()
    assert prompt == "count everything"
    assert sorted(word.rstrip("0123456789") for word in said) == sorted(COUNTED)
    for kind in COUNTED:
        things = f"{kind} things" if kind in COLOURS else f"{kind}s"
        assert kind + count[f"how many {things} are there?"] in said
    assert numbers(SCENE, np.random.default_rng(1))[1] != answer  # another order


def test_found_boxes_are_the_truth_to_half_a_bin():
    for item in boxed(boxes(SCENE, "top"), ["red square", "green plate"]):
        y0, x0, y1, x1 = boxes(SCENE, "top")[item.name]
        for ours, true in (
            (item.box.y0, y0),
            (item.box.x0, x0),
            (item.box.y1, y1),
            (item.box.x1, x1),
        ):
            assert abs(ours - true) < 0.5 / BINS + 1e-3


def test_mask_codes_are_the_codecs_own_for_the_part_within_the_box():
    torch.manual_seed(0)
    codec = MaskCodec(SMALL_MASK_CODEC).eval()
    (item,) = masked(SCENE, boxed(boxes(SCENE, "top"), ["red circle"]), codec)
    part = cut(
        masks(SCENE, "top", MASK_SIZE)["red circle"], rounded(boxes(SCENE, "top")["red circle"])
    )
    assert 0.6 < part.mean() < 0.9  # a disc fills π/4 of its box
    with torch.no_grad():
        assert item.codes == tuple(codec.encode(torch.from_numpy(part)[None])[0].tolist())


def test_every_task_comes_with_its_share_and_answers_parse():
    torch.manual_seed(0)
    scenes = TabletopVLM(24, MaskCodec(SMALL_MASK_CODEC).eval(), seed=5)
    examples = [scenes[i] for i in range(300)]
    again = scenes[7]
    assert (again.prompt, again.answer) == (examples[7].prompt, examples[7].answer)
    words = [example.prompt.split()[0] for example in examples]
    for task, word in (("detect", "detect"), ("segment", "segment"), ("question", "answer")):
        assert abs(words.count(word) / 300 - SHARES[task]) < 0.09
    for example in examples:
        if example.prompt.startswith(("detect", "segment")):
            parsed = parse_detections(example.answer)
            assert not parsed.dropped
            names = example.prompt.split(" ", 1)[1].split(" ; ")
            assert [item.name for item in parsed.items] == names
            assert all(
                (i.codes is not None) == example.prompt.startswith("segment") for i in parsed.items
            )


def test_further_texts_are_about_the_same_picture():
    shares = {"question": 0.7, "caption": 0.2, "count": 0.1}
    alone, more = (TabletopVLM(24, seed=5, shares=shares, texts=n) for n in (1, 4))
    prompts = []
    for i in range(60):
        one, several = alone[i], more[i]
        assert np.array_equal(one.images, several.images)
        assert (one.prompt, one.answer, one.also) == (several.prompt, several.answer, ())
        assert len(several.also) == 3
        texts = {(several.prompt, several.answer), *several.also}
        assert len({answer for prompt, answer in texts if prompt == "caption en"}) <= 1
        prompts += [prompt.split()[0] for prompt, _ in several.also]
    for task, word in (("question", "answer"), ("caption", "caption"), ("count", "count")):
        assert abs(prompts.count(word) / 180 - shares[task]) < 0.12


def test_a_picture_without_a_text_is_refused():
    with pytest.raises(ValueError, match="texts is 0; each picture needs 1 or more"):
        TabletopVLM(24, texts=0)


def test_places_are_where_things_are_and_the_upper_of_a_stack_counts():
    places = TabletopPlaces(24, 200, seed=3).batch(range(20))
    assert places.images.shape == (40, 3, 24, 24)
    assert {"red square", "cyan plate"} <= set(NAMES)
    assert len(NAMES) == len(COLOURS) * (len(SHAPES) + 1)
    rng = np.random.default_rng((3, 0))
    scene = sample_scene(rng, STANDARD if rng.random() < 0.5 else EASY).with_random_gripper(rng)
    mine = places.row == 0  # the first scene's top camera
    for n, patch in zip(places.name[mine], places.patch[mine].tolist(), strict=True):
        y, x = (patch // 200 + 0.5) / 200, (patch % 200 + 0.5) / 200
        assert scene.position[scene.index(NAMES[n])] == pytest.approx((x, y), abs=0.0035)
    whole = boxes(scene, "top")
    for n, box in zip(places.name[mine], places.box[mine], strict=True):
        assert box.tolist() == pytest.approx(whole[NAMES[n]], abs=1e-6)


def tiny_places(scenes: int) -> Places:
    size, patch = PALIGEMMA_TINY.resolution, PALIGEMMA_TINY.vision.patch
    return TabletopPlaces(size, size // patch, ("top",), seed=3).batch(range(scenes))


def test_no_patch_tells_of_two_things():
    """Three share the last of 2 × 2: one stays, one goes up, one to what is left."""
    centres = [(0.74, 0.74), (0.9, 0.8), (0.7, 0.52), (0.8, 0.3)]
    assert telling(centres, 2) == [3, 1, 0, 2]
    assert telling(centres[:2], 2) == [3, 2]
    assert telling([], 2) == []
    with pytest.raises(ValueError, match="1 × 1 patches can't tell of 4 things"):
        telling(centres, 1)
    scenes = TabletopPlaces(24, 3, ("top",), seed=3, standard=1.0).batch(range(30))
    assert len({*zip(scenes.row.tolist(), scenes.patch.tolist(), strict=True)}) == len(scenes.row)


def test_names_and_boxes_are_told_from_the_patch_of_a_things_centre():
    places = tiny_places(4)
    torch.manual_seed(0)
    model = PlaceNames(PALIGEMMA_TINY.vision)
    with torch.no_grad():  # sure of no coordinate: the names' loss is left
        whole = model.vision(places.images / 127.5 - 1)
        names = F.cross_entropy(model.head(whole[places.row, places.patch]), places.name)
        model.corners.weight.zero_()
        model.corners.bias.zero_()
        assert float(model(places) - names) == pytest.approx(math.log(BINS), abs=1e-5)


def test_the_share_of_crowded_scenes():
    things = [len(TabletopPlaces(8, 4, ("top",), 1, s).batch(range(40)).row) for s in (0.0, 1.0)]
    assert 40 * 3 <= things[0] <= 40 * 5 < things[1] <= 40 * 8


def test_text_starts_from_the_encoder_that_was_taught_before(tmp_path):
    from vla.training.loop import train

    config = VisionConfig(
        output_dir=tmp_path / "vision",
        model=PALIGEMMA_TINY.vision,
        steps=2,
        batch_size=2,
        eval_batches=1,
        ema=None,
        optim=OptimConfig(lr=1e-2, warmup=0),
        tensorboard=False,
    )
    folder = train(config)
    assert isinstance(config.job().model, PlaceNames)
    text = TextConfig(
        output_dir=tmp_path, steps=1, batch_size=1, model=PALIGEMMA_TINY, vision=folder
    )
    started = dict(text.job().begun().named_parameters())
    taught = load_file(folder / "model.safetensors")
    assert all(torch.equal(started[f"vision.{name}"], values) for name, values in taught.items())
    assert not torch.equal(taught["norm.weight"], torch.ones(PALIGEMMA_TINY.vision.width))


@pytest.mark.slow
def test_a_vlm_is_saved_with_the_codec_that_was_trained_before_it(tmp_path):
    from vla.training.loop import train

    config = VLMConfig(
        output_dir=tmp_path,
        model=PALIGEMMA_TINY,
        steps=2,
        batch_size=2,
        codec_steps=42,
        texts=3,
        seeing=1,
        ramp=1,
        eval_batches=1,
        tensorboard=False,
    )
    folder = train(config)
    kept, again = load_file(folder / CODEC), replace(config).codec.state_dict()  # read, not trained
    assert all(torch.equal(values, again[name]) for name, values in kept.items())
    assert (tmp_path / "mask_codec-0-42.safetensors").is_file()
    model, _ = load_pretrained(folder)
    assert model.config == PALIGEMMA_TINY
    assert set(KINDS) == set(QUESTIONS) == {"colour", "count", "presence", "relation", "side"}
    assert sum(QUESTIONS.values()) == pytest.approx(1)
    assert sum(SHARES.values()) == pytest.approx(1)
