"""Stages: where weights come from, what is counted, and which mistakes are refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from backbone.design import Design
from backbone.gemma import Block
from backbone.gemma_alone import GemmaAlone, save_gemma
from backbone.mask_codec import CODEC, load_codec
from backbone.paligemma import PALIGEMMA_TINY, PaliGemma, PaliGemmaConfig
from backbone.positions import resample_positions
from backbone.pretrained import load_pretrained, save_pretrained
from backbone.siglip import raw_patches
from backbone.siglip_pair import SigLIPPair, SigLIPPairConfig, save_siglip
from backbone.tokenizer import Tokenizer
from vla.assets import MASK_CODEC_TABLETOP
from vla.config import OptimConfig
from vla.data.examples import TabletopData
from vla.data.image_text.formats import Prefixed
from vla.data.image_text.jsonl import Jsonl
from vla.data.image_text.mixture import MixtureData, Part
from vla.data.tabletop_masks import thing_masks
from vla.data.text import without_task
from vla.training.language_job import LanguageConfig
from vla.training.loop import train
from vla.training.schedule import Schedule
from vla.training.siglip_job import SigLIPTrainConfig
from vla.training.stage_job import StageConfig, started
from vla.training.vision_job import VisionConfig

VOCAB = PALIGEMMA_TINY.vocab
TEXT_ROWS = VOCAB - 1152
FINER = replace(PALIGEMMA_TINY, vision=replace(PALIGEMMA_TINY.vision, resolution=64))
PAIR = SigLIPPairConfig(PALIGEMMA_TINY.vision, VOCAB, text_depth=1, text_length=24)
RUN = {
    "steps": 2,
    "batch_size": 2,
    "eval_batches": 1,
    "ema": None,
    "optim": OptimConfig(lr=1e-3, schedule=Schedule("rsqrt", warmup=1)),
    "tensorboard": False,
    "device": "cpu",
}


def stage(folder: Path, model: PaliGemmaConfig = PALIGEMMA_TINY, **fields) -> StageConfig:
    values = {"output_dir": folder, "model": model, "data": TabletopData(), **RUN, **fields}
    return StageConfig(**values)


@pytest.fixture
def parts(tmp_path):
    torch.manual_seed(3)
    pair = SigLIPPair(PAIR)
    gemma = GemmaAlone(PALIGEMMA_TINY.language, TEXT_ROWS)
    save_siglip(pair, tmp_path / "siglip")
    save_gemma(gemma, tmp_path / "gemma")
    Tokenizer.small().save(tmp_path / "gemma")
    return {"siglip": tmp_path / "siglip", "gemma": tmp_path / "gemma"}


@pytest.fixture
def whole(tmp_path):
    torch.manual_seed(4)
    model = PaliGemma(PALIGEMMA_TINY)
    save_pretrained(model, Tokenizer.small(), tmp_path / "whole")
    return tmp_path / "whole"


# --- where weights come from ----------------------------------------------------------------------


def test_stage_1_starts_from_both_parts_and_a_zero_projection(parts, tmp_path):
    config = stage(tmp_path / "run", **parts)
    model = started(config, Tokenizer.small())
    assert model.config == PALIGEMMA_TINY
    assert not model.projector.weight.any()  # pyright: ignore
    new = model.embedding.weight[TEXT_ROWS:]
    assert new.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(new, started(config, Tokenizer.small()).embedding.weight[TEXT_ROWS:])


def test_a_stage_runs_and_the_next_one_starts_from_it_at_a_finer_resolution(parts, tmp_path):
    first = train(stage(tmp_path / "1", **parts))
    config = stage(tmp_path / "2", FINER, init=first, init_resolution=32, text_length=48)
    coarse, _ = load_pretrained(first)
    fine = started(config, Tokenizer.small())
    expected = resample_positions(coarse.vision.embedding.position, 64)  # pyright: ignore
    torch.testing.assert_close(fine.vision.embedding.position, expected)  # pyright: ignore
    assert torch.equal(fine.embedding.weight, coarse.embedding.weight)
    second = train(config)
    assert load_pretrained(second)[0].config.vision.resolution == 64
    lines = (tmp_path / "2/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["cut"] >= 0


def test_a_checkpoint_of_another_resolution_is_refused(whole, tmp_path):
    with pytest.raises(ValueError, match=r"of 32 pixels, but .* names no other; .*resolution=3"):
        stage(tmp_path, FINER, init=whole).job()
    save_pretrained(PaliGemma(FINER), Tokenizer.small(), tmp_path / "finer")
    finest = replace(FINER, vision=replace(FINER.vision, resolution=128))
    with pytest.raises(ValueError, match="of 64 pixels, but init_resolution says 32; give the"):
        stage(tmp_path, finest, init=tmp_path / "finer", init_resolution=32).job()


def test_weights_that_name_no_source_are_refused(parts, tmp_path):
    with pytest.raises(ValueError, match=r"weights of vision name no source; give init, .* siglip"):
        stage(tmp_path)
    with pytest.raises(ValueError, match=r"of language name no source; .*fresh=\(\"language\",\)"):
        stage(tmp_path, siglip=parts["siglip"])
    with pytest.raises(ValueError, match="init and siglip or gemma are both given"):
        stage(tmp_path, init=tmp_path, siglip=parts["siglip"])
    with pytest.raises(ValueError, match="init_resolution is given without init"):
        stage(tmp_path, init_resolution=32, **parts)


def test_other_sizes_are_named(whole, parts, tmp_path):
    deeper = replace(PALIGEMMA_TINY, language=replace(PALIGEMMA_TINY.language, depth=3))
    with pytest.raises(ValueError, match=r"other sizes .*: language\.depth 2 there, 3 here"):
        stage(tmp_path, deeper, init=whole).job()
    with pytest.raises(ValueError, match=r"other sizes .*: language\.depth 2 there, 3 here"):
        stage(tmp_path, deeper, **parts).job()
    with pytest.raises(ValueError, match="SigLIP of 32 pixels, the model's is 64; stage 1 keeps"):
        stage(tmp_path, FINER, **parts).job()
    with pytest.raises(FileNotFoundError, match="no PaliGemma at"):
        stage(tmp_path, init=tmp_path / "nowhere").job()


def test_a_tokenizer_of_another_model_is_refused(whole, tmp_path):
    with pytest.raises(
        ValueError, match=r"has 2176 ids but model\.vocab is 3000; give the weights'"
    ):
        stage(tmp_path, replace(PALIGEMMA_TINY, vocab=3000), init=whole).job()


def test_parts_start_anew_where_told(whole, tmp_path):
    """R of the freeze matrix: random although there are weights."""
    torch.manual_seed(0)
    model = started(stage(tmp_path, init=whole, fresh=("vision",)), Tokenizer.small())
    kept, _ = load_pretrained(whole)
    name = "vision.blocks.0.fc1.weight"
    assert not torch.equal(model.get_parameter(name), kept.get_parameter(name))
    assert torch.equal(model.embedding.weight, kept.embedding.weight)


@pytest.mark.parametrize("source", ["siglip", "gemma"])
def test_one_part_may_have_no_source_if_it_is_fresh(source, parts, tmp_path):
    other = {"siglip": "language", "gemma": "vision"}[source]
    config = stage(tmp_path, **{source: parts[source]}, fresh=(other,))
    model = started(config, Tokenizer.small())
    reference = started(stage(tmp_path, **parts), Tokenizer.small())
    same = {
        part: torch.equal(
            model.get_parameter(f"{part}.blocks.0.{name}"),
            reference.get_parameter(f"{part}.blocks.0.{name}"),
        )
        for part, name in (("vision", "fc1.weight"), ("language", "mlp.up_proj.weight"))
    }
    assert same == {"vision": source == "siglip", "language": source == "gemma"}
    if source == "gemma":
        assert model.embedding.weight[TEXT_ROWS:].std().item() == pytest.approx(0.02, rel=0.05)


def test_without_an_encoder_gemma_alone_is_a_source(parts, tmp_path):
    pixels = replace(PALIGEMMA_TINY, vision=raw_patches(8, 32))
    config = stage(tmp_path / "run", pixels, gemma=parts["gemma"])
    assert load_pretrained(train(config))[0].config == pixels


def test_another_connector_starts_at_zero_too(parts, tmp_path):
    model = replace(PALIGEMMA_TINY, design=Design(connector=20))
    made = started(stage(tmp_path, model, **parts), Tokenizer.small())
    assert made.config == model
    assert not made.projector.fc2.weight.any()  # pyright: ignore


def test_new_rows_may_be_ordered(parts, tmp_path):
    model = started(stage(tmp_path, new_rows="ordered", **parts), Tokenizer.small())
    first = Tokenizer.small().loc(0)
    rows = torch.nn.functional.normalize(model.embedding.weight[first : first + 1024], dim=-1)
    near, far = (rows[0] @ rows[2]).item(), (rows[0] @ rows[600]).item()
    assert near > 0.99 > far


# --- what is learned ------------------------------------------------------------------------------


def losses(config: StageConfig, seed: int = 0) -> float:
    job = config.job()
    [microbatch] = job.batch(0)
    torch.manual_seed(seed)
    with torch.no_grad():
        return job.begun().train()(*microbatch.inputs).item()


def test_smoothing_and_dropout_act_in_training_and_not_in_validation(whole, tmp_path):
    plain = stage(tmp_path, init=whole)
    smoothed = replace(plain, label_smoothing=0.3)
    dropped = replace(plain, dropout=0.3)
    assert len({losses(plain), losses(smoothed), losses(dropped)}) == 3
    shares = {m.dropout.p for m in dropped.job().model.modules() if isinstance(m, Block)}
    assert shares == {0.3}
    for config in (smoothed, dropped):
        job = config.job()
        assert job.held_out is not None
        for ours, theirs in zip(job.held_out(), plain.job().held_out() or (), strict=True):  # pyright: ignore
            assert len(ours.inputs) == 1
            torch.testing.assert_close(
                job.begun().eval()(*ours.inputs), plain.job().begun().eval()(*theirs.inputs)
            )


def test_the_prompt_counts_only_where_it_is_causal(whole, tmp_path):
    with pytest.raises(ValueError, match=r"prompt tokens see those after them: set model\.design"):
        stage(tmp_path, init=whole, prompt_loss=True)
    causal = replace(PALIGEMMA_TINY, design=Design(causal="text"))
    [microbatch] = stage(tmp_path, causal, init=whole, prompt_loss=True).job().batch(0)
    batch = microbatch.inputs[0]
    assert torch.equal(batch.counted, batch.token_valid)


def test_prompts_lose_the_words_that_name_their_task(whole, tmp_path):
    assert without_task("answer en how many squares?") == "how many squares?"
    assert without_task("detect cat ; dog") == "cat ; dog"
    assert without_task("caption en") == ""
    assert without_task("ocr") == ""
    assert without_task("what does the caption say?") == "what does the caption say?"
    config = stage(tmp_path, init=whole, task_prefix=False, data=TabletopData((("caption", 1.0),)))
    [microbatch] = config.job().batch(0)
    head = microbatch.inputs[0].tokens[0, :2].tolist()
    assert head == Tokenizer.small().prefix("")


def test_rows_that_are_too_long_are_cut_and_counted(whole, tmp_path):
    config = stage(
        tmp_path, init=whole, text_length=6, batch_size=8, data=TabletopData((("caption", 1.0),))
    )
    [microbatch] = config.job().batch(0)
    assert microbatch.counts == {"cut": 8.0}
    assert microbatch.inputs[0].tokens.shape == (8, 6)
    assert Tokenizer.eos not in microbatch.inputs[0].tokens
    [long_enough] = replace(config, text_length=60).job().batch(0)
    assert long_enough.counts == {"cut": 0.0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing is 1\.0; it is a share in \[0, 1\)"),
        ({"dropout": -0.1}, r"dropout is -0\.1; it is a share"),
        ({"text_length": 1}, "text_length is 1; give 2 tokens or more"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        stage(tmp_path, init=tmp_path, **fields)


def test_unknown_tasks_of_scenes_are_named():
    with pytest.raises(
        ValueError, match="unknown task 'captoin' in shares; there are locate, count, det"
    ):
        TabletopData((("captoin", 1.0),))
    with pytest.raises(ValueError, match="don't sum to 1"):
        TabletopData((("caption", 0.5),))


# --- data in files --------------------------------------------------------------------------------


@pytest.fixture
def jsonl(tmp_path) -> Path:
    lines = []
    for i in range(3):
        grey = np.full((40, 20, 3), 60 * i, np.uint8)
        Image.fromarray(grey).save(tmp_path / f"{i}.png")
        line = {"image": f"{i}.png", "suffixes": [f"a{i}", f"b{i}"]}
        lines.append({**line, "objects": [{"label": "grey", "box": [0, 0, 20, 40]}]})
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def files(path: Path, validation: Path | None = None) -> MixtureData:
    held_out = None if validation is None else Jsonl(validation)
    return MixtureData((Part("all", Jsonl(path), Prefixed("how {label}?"), validation=held_out),))


def test_a_stage_trains_on_files(whole, jsonl, tmp_path):
    config = stage(tmp_path / "run", init=whole, data=files(jsonl, jsonl))
    assert train(config).is_dir()


def test_an_example_without_its_image_is_refused(whole, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"image": "gone.png", "suffix": "x"}))
    with pytest.raises(ValueError, match=r"bad\.jsonl:1: .*gone\.png"):
        stage(tmp_path, init=whole, data=files(path)).job()


def test_scenes_are_segmented_and_the_codec_stays_beside_the_model(whole, tmp_path):
    shares = (("segment", 1.0),)
    with pytest.raises(ValueError, match='shares ask for "segment" but codec names no mask codec'):
        TabletopData(shares)
    data = TabletopData(shares, codec=MASK_CODEC_TABLETOP)
    assert re.match(r"(<loc\d{4}>){4}(<seg\d{3}>){16} ", data.training(FINER, 0)[0].answer)
    first = train(stage(tmp_path / "1", init=whole, data=data))
    second = train(stage(tmp_path / "2", init=first))  # asks for no masks, and keeps the codec
    for folder in (first, second):
        assert (folder / CODEC).read_bytes() == MASK_CODEC_TABLETOP.read_bytes()


def test_the_shipped_codec_redraws_the_tabletops_masks():
    codec = load_codec(MASK_CODEC_TABLETOP)
    masks = next(thing_masks(7))
    with torch.no_grad():
        drawn = codec.decode(codec.encode(masks)) > 0.5
    shared, covered = (drawn & (masks > 0.5)).sum(), (drawn | (masks > 0.5)).sum()
    assert shared / covered > 0.9


# --- stage 0 --------------------------------------------------------------------------------------


def test_stage_0_makes_both_parts_and_stage_1_goes_on_from_them(tmp_path):
    siglip = train(SigLIPTrainConfig(output_dir=tmp_path / "a", model=PAIR, **RUN))
    gemma = train(LanguageConfig(output_dir=tmp_path / "b", model=PALIGEMMA_TINY.language, **RUN))
    assert (siglip.name, gemma.name) == ("siglip", "gemma")
    assert train(stage(tmp_path / "c", siglip=siglip, gemma=gemma)).name == "paligemma"


def test_a_siglip_starts_from_an_encoder_that_knows_places(tmp_path):
    """Its image tower is that encoder's, and what the encoder has not is drawn as ever."""
    vision = train(VisionConfig(output_dir=tmp_path / "a", model=PALIGEMMA_TINY.vision, **RUN))
    kept = load_file(vision / "model.safetensors")
    config = SigLIPTrainConfig(output_dir=tmp_path / "b", model=PAIR, vision=vision, **RUN)
    begun = config.job().begun().state_dict()
    drawn = replace(config, vision=None).job().begun().state_dict()
    for name, tensor in begun.items():
        inside = name.removeprefix("vision.")
        expected = kept[inside] if inside != name and inside in kept else drawn[name]
        assert torch.equal(tensor, expected), name
    assert not torch.equal(begun["vision.embedding.weight"], drawn["vision.embedding.weight"])
    other = replace(PAIR, vision=replace(PAIR.vision, width=64))
    with pytest.raises(ValueError, match="of another shape"):
        replace(config, model=other).job()


@pytest.mark.slow
def test_a_siglip_learns_which_caption_belongs_to_which_picture(tmp_path):
    """Sixteen scenes by heart: every picture is nearest to its own caption."""
    config = SigLIPTrainConfig(output_dir=tmp_path, model=PAIR, **{**RUN, "batch_size": 16})
    job = config.job()
    [microbatch] = job.batch(0)
    optimiser = torch.optim.AdamW(job.begun().parameters(), lr=3e-3)
    first = job.model(*microbatch.inputs).item()
    loss = torch.tensor(torch.inf)
    for _ in range(150):
        loss = job.model(*microbatch.inputs)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.2 * first
    assert isinstance(job.model, SigLIPPair)
    image, text = job.model.embed(*microbatch.inputs)
    assert (image @ text.T).argmax(1).tolist() == list(range(16))


def test_the_batch_of_a_siglip_is_not_divided(tmp_path):
    with pytest.raises(ValueError, match="accumulate is 2, but each picture is compared with all"):
        SigLIPTrainConfig(output_dir=tmp_path, model=PAIR, **RUN, accumulate=2)
