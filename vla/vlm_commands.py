"""What the VLM's commands do once their arguments are read (`vla.cli_vlm`)."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from backbone import tasks
from backbone.decoding import Decoding
from backbone.findings import Findings
from backbone.mask_codec import CODEC, VAE_OID, MaskCodec, codec_beside, load_codec
from backbone.precision import resolved
from backbone.vlm import VLM
from vla.assets import PALIGEMMA_TABLETOP
from vla.cli_vlm import DECODING
from vla.data.annotated import read_annotated
from vla.drawing import draw_findings
from vla.evaluation.evaluate_vlm import evaluate_vlm, save_vlm_evaluation
from vla.evaluation.vlm_tasks import MASK_TASK, TASKS, VLMTask, referring_masks
from vla.picture_list import STDIN, Opened, find_pictures, limits, read_picture


def load(args: argparse.Namespace) -> VLM:
    device = as_device(args.device)
    args.dtype = args.dtype or resolved("auto", device)
    vlm = VLM.from_pretrained(_model(args), device=device, dtype=args.dtype)
    return vlm.compile() if args.compile else vlm


def say(args: argparse.Namespace, prompt: str) -> int:
    """Put one prompt to every picture."""
    options, paths = _options(args), find_pictures(args.images)
    vlm, many = load(args), len(paths) > 1

    def show(images: list[np.ndarray]) -> list[Any]:
        return vlm.generate(images, [prompt] * len(images), **options)

    return _each(args, paths, show, lambda o, text: _print_text(args, o.path, text, many))


def ask(args: argparse.Namespace) -> int:
    """Put a question, or any prompt, to every picture, or to all together."""
    prompt = _asked(args)
    if not args.together:
        return say(args, prompt)
    options, allowed = _options(args), limits(args.max_megapixels)
    opened = [_must(read_picture(path, allowed)) for path in find_pictures(args.images)]
    text = load(args).generate(opened, prompt, **options)
    names = [str(path) for path in args.images]
    print(json.dumps({"images": names, "text": text}, ensure_ascii=False) if args.json else text)
    return 0


def find(args: argparse.Namespace) -> int:
    """Look for things in every picture."""
    tasks.check_names(args.things)
    options, paths = _options(args), find_pictures(args.images)
    vlm, many = load(args), len(paths) > 1
    if args.segment:
        vlm.codec = _codec(args).to(vlm.device)
    look = vlm.segment if args.segment else vlm.detect
    targets = _targets(paths, args.out)

    def show(images: list[np.ndarray]) -> list[Any]:
        return look(images, args.things, restrict=args.restrict, **options)

    def tell(opened: Opened, found: Findings) -> None:
        saved = targets.get(opened.path)
        if saved is not None and opened.pixels is not None:
            _save(opened.pixels, found, saved)
        _print_findings(args, opened.path, found, many, saved)

    return _each(args, paths, show, tell)


def evaluate(args: argparse.Namespace) -> None:
    """Score a model in an image-text test."""
    task = _task(args)
    examples = read_annotated(args.data)[: args.limit]
    vlm = load(args)
    beams = args.beams or task.beams
    bar = tqdm(total=len(examples), unit="example", disable=None)

    def generate(images: list[list[np.ndarray]], prompts: list[str]) -> list[str]:
        said = vlm.generate(images, prompts, max_new_tokens=task.max_new_tokens, beams=beams)
        bar.update(len(prompts))
        return said

    with bar:
        evaluation = evaluate_vlm(task, examples, generate, args.batch)
    print(evaluation.table())
    folder = args.output_dir or Path("outputs/evaluate-vlm") / args.task
    settings = {"task": args.task, "model": str(args.model), "data": str(args.data)}
    settings |= {"dtype": args.dtype, "beams": beams, "max_new_tokens": task.max_new_tokens}
    folder.mkdir(parents=True, exist_ok=True)
    save_vlm_evaluation(evaluation, folder, settings)
    print(f"saved in {folder}")


def _model(args: argparse.Namespace) -> Path:
    if args.model is None:
        raise ValueError(
            "expected --model DIR, a PaliGemma's folder; a small one for trying out ships as "
            f"{PALIGEMMA_TABLETOP}"
        )
    return args.model


def as_device(name: str) -> torch.device:
    """Raises ValueError for an unknown one, or for a GPU where torch finds none."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}, expected one such as cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}, but torch finds no GPU here; use --device cpu")
    return device


def _each(
    args: argparse.Namespace,
    paths: Sequence[Path],
    show: Callable[[list[np.ndarray]], list[Any]],
    tell: Callable[[Opened, Any], None],
) -> int:
    """Show the pictures to the model, some at a time, and tell of each; those that can't be read
    are told on stderr, and make the exit status 1 (a single one is an error)."""
    failed = 0
    for group in _groups(args, paths):
        if len(paths) == 1:
            _must(group[0])
        said = iter(show([o.pixels for o in group if o.pixels is not None]))
        for opened in group:
            if opened.pixels is not None:
                tell(opened, next(said))
                continue
            failed += 1
            print(f"error: {opened.error}", file=sys.stderr)
            if args.json:
                print(json.dumps({"image": str(opened.path), "error": opened.error}))
    return 1 if failed else 0


def _groups(args: argparse.Namespace, paths: Sequence[Path]) -> Iterator[list[Opened]]:
    allowed = limits(args.max_megapixels)
    with tqdm(total=len(paths), unit="picture", disable=None if len(paths) > 1 else True) as bar:
        for start in range(0, len(paths), args.batch):
            group = [read_picture(path, allowed) for path in paths[start : start + args.batch]]
            yield group
            bar.update(len(group))


def _must(opened: Opened) -> np.ndarray:
    if opened.pixels is None:
        raise ValueError(opened.error)
    return opened.pixels


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Decoding options as `VLM`'s methods take them, checked before anything is loaded."""
    options = {name: getattr(args, name) for name in DECODING}
    if Decoding(**options).drawn:
        options["generator"] = torch.Generator(as_device(args.device)).manual_seed(args.seed)
    return options


def _asked(args: argparse.Namespace) -> str:
    """The prompt of `vla ask`."""
    if args.prompt is not None:
        if args.question is not None:
            raise ValueError("--question and --prompt exclude each other; --prompt is the whole")
        return args.prompt
    if args.question is not None:
        return tasks.answer(args.question, args.lang)
    if STDIN in args.images:
        raise ValueError("standard input holds the picture; give the question with --question")
    if sys.stdin.isatty():
        raise ValueError("expected --question TEXT, or a question on standard input")
    return tasks.answer(sys.stdin.read().strip(), args.lang)


def _print_text(args: argparse.Namespace, path: Path, text: str, many: bool) -> None:
    if args.json:
        print(json.dumps({"image": str(path), "text": text}, ensure_ascii=False))
    else:
        print(f"{path}: {text}" if many else text)


def _print_findings(
    args: argparse.Namespace, path: Path, found: Findings, many: bool, saved: Path | None
) -> None:
    if args.json:
        things = []
        for thing in found.things:
            fields: dict[str, Any] = {"name": thing.name, "box": list(thing.box)}
            if thing.mask is not None:
                fields["mask_pixels"] = int(thing.mask.sum())
            things.append(fields)
        line: dict[str, Any] = {"image": str(path), "things": things}
        line |= {"dropped": list(found.dropped), "text": found.text}
        if saved is not None:
            line["saved"] = str(saved)
        print(json.dumps(line, ensure_ascii=False))
        return
    start = f"{path}: " if many else ""
    for thing in found.things:
        x0, y0, x1, y1 = (f"{edge:.1f}" for edge in thing.box)
        pixels = "" if thing.mask is None else f", {int(thing.mask.sum())} pixels"
        print(f"{start}{thing.name or '(no name)'} from ({x0}, {y0}) to ({x1}, {y1}){pixels}")
    if not found.things:
        print(f"{start}nothing found")
    for piece in found.dropped:
        print(f"{start}left out: {piece}", file=sys.stderr)


def _targets(paths: Sequence[Path], folder: Path | None) -> dict[Path, Path]:
    """Where each picture is drawn to: its name in `folder`, with a number where two are alike."""
    if folder is None:
        return {}
    targets: dict[Path, Path] = {}
    for path in dict.fromkeys(paths):
        stem = "stdin" if path == STDIN else path.stem
        target, count = folder / f"{stem}.png", 1
        while target in targets.values():
            count += 1
            target = folder / f"{stem}-{count}.png"
        targets[path] = target
    originals = {path.resolve() for path in paths}
    taken = [target for target in targets.values() if target.resolve() in originals]
    if taken:
        raise ValueError(f"{taken[0]} is one of the pictures; give another folder as --out")
    return targets


def _save(picture: np.ndarray, found: Findings, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    draw_findings(picture, found).save(temporary, "PNG")
    os.replace(temporary, path)


def _codec(args: argparse.Namespace) -> MaskCodec:
    path = args.codec or codec_beside(_model(args))
    if path is None:
        raise FileNotFoundError(
            f"no mask codec beside {args.model} ({CODEC} or {VAE_OID}); give one with --codec"
        )
    return load_codec(path)


def _task(args: argparse.Namespace) -> VLMTask:
    if args.task == MASK_TASK:
        return referring_masks(_codec(args).outline)
    if args.task not in TASKS:
        known = [*TASKS, MASK_TASK]
        near = difflib.get_close_matches(args.task, known, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"unknown task {args.task!r}; {hint}known are {' '.join(known)}")
    return TASKS[args.task]
