"""The commands of the VLM alone: caption, ask, ocr, detect, segment, collect-vlm, evaluate-vlm.

Nothing but their arguments is known here; `vla.vlm_commands` runs them.
"""

import argparse
from pathlib import Path

DECODING = ("max_new_tokens", "beams", "temperature", "top_k", "top_p", "best_of")


def add_caption(commands) -> argparse.ArgumentParser:
    parser = _command(commands, "caption", "what is in a picture, in a sentence")
    _add_language(parser)
    parser.add_argument("--long", action="store_true", help="describe it at length")
    parser.set_defaults(run=_run_caption)
    return parser


def _run_caption(args: argparse.Namespace) -> int:
    from backbone import tasks
    from vla.vlm_commands import say

    prompt = tasks.describe(args.lang) if args.long else tasks.caption(args.lang)
    return say(args, prompt)


def add_ask(commands) -> argparse.ArgumentParser:
    parser = _command(commands, "ask", "the answer to a question about a picture")
    parser.add_argument(
        "-q", "--question", metavar="TEXT", help="default: what stands on standard input"
    )
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="the whole prompt instead, as the model was trained with it",
    )
    parser.add_argument(
        "--together", action="store_true", help="one question about all pictures (or frames)"
    )
    _add_language(parser)
    parser.set_defaults(run=_run_ask)
    return parser


def _run_ask(args: argparse.Namespace) -> int:
    from vla.vlm_commands import ask

    return ask(args)


def add_ocr(commands) -> argparse.ArgumentParser:
    parser = _command(commands, "ocr", "the text in a picture", max_new_tokens=256)
    parser.set_defaults(run=_run_ocr)
    return parser


def _run_ocr(args: argparse.Namespace) -> int:
    from backbone import tasks
    from vla.vlm_commands import say

    return say(args, tasks.ocr())


def add_detect(commands) -> argparse.ArgumentParser:
    parser = _command(commands, "detect", "boxes of things in a picture", max_new_tokens=256)
    _add_things(parser)
    parser.set_defaults(run=_run_find, codec=None, segment=False)
    return parser


def add_segment(commands) -> argparse.ArgumentParser:
    parser = _command(commands, "segment", "masks of things in a picture", max_new_tokens=256)
    _add_things(parser)
    _add_codec(parser)
    parser.set_defaults(run=_run_find, segment=True)
    return parser


def _run_find(args: argparse.Namespace) -> int:
    from vla.vlm_commands import find

    return find(args)


def add_evaluate(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "evaluate-vlm",
        help="a VLM's score in an image-text test",
        description="Put the examples in DATA to the PaliGemma in DIR as TASK asks and scores them "
        "(prompts, decoding and metrics of PaliGemma's own transfers), print the scores, and save "
        "them with every answer.",
    )
    parser.add_argument(
        "task", metavar="TASK", help="such as cococap, vqav2, detect, refcoco, refcoco-masks"
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PATH", help="a .jsonl file or its folder"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N examples only")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="default: outputs/evaluate-vlm/TASK"
    )
    _add_model(parser)
    _add_codec(parser)
    parser.add_argument(
        "--beams", type=positive, metavar="N", help="default: as the task's published numbers"
    )
    parser.add_argument("--batch", type=positive, default=16, metavar="N", help="side by side")
    parser.set_defaults(run=_run_evaluate)
    return parser


def _run_evaluate(args: argparse.Namespace) -> None:
    from vla.vlm_commands import evaluate

    evaluate(args)


def add_collect(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "collect-vlm",
        help="image-text tests about a tabletop, with their pictures",
        description="Write pictures of random scenes of ENV and what is asked about them to DIR, "
        "which must not exist yet: questions.jsonl, captions.jsonl, detect.jsonl and "
        "segment.jsonl, each of which evaluate-vlm takes as --data.",
    )
    parser.add_argument("env", metavar="ENV", help="Tabletop-v0 or Tabletop-easy-v0")
    parser.add_argument("--scenes", type=positive, required=True, metavar="N")
    parser.add_argument("--root", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--seed", type=int, default=1_000_000, help="default: scenes that no training draws"
    )
    parser.add_argument(
        "--image-size",
        type=positive,
        default=288,
        metavar="PIXELS",
        help="side of the pictures and masks (default: 288)",
    )
    parser.set_defaults(run=_run_collect)
    return parser


def _run_collect(args: argparse.Namespace) -> None:
    from vla.data.tabletop_annotated import write_annotated

    write_annotated(args.env, args.scenes, args.root, seed=args.seed, image_size=args.image_size)
    print(f"{args.scenes} scenes of {args.env} in {args.root}")


VLM_COMMANDS = (
    add_caption,
    add_ask,
    add_ocr,
    add_detect,
    add_segment,
    add_collect,
    add_evaluate,
)


def positive(text: str) -> int:
    """An argparse type: a whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text}")
    return value


def _command(commands, name: str, what: str, max_new_tokens: int = 64) -> argparse.ArgumentParser:
    """A command that looks at pictures."""
    parser = commands.add_parser(
        name,
        help=what,
        description=f"Print {what}, by the PaliGemma in DIR. An IMAGE is a file, a folder of them, "
        "or - for standard input. Exit status 1 if any could not be read.",
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    _add_model(parser)
    parser.add_argument("--json", action="store_true", help="print a line of JSON per picture")
    parser.add_argument(
        "--batch", type=positive, default=16, metavar="N", help="pictures side by side (default 16)"
    )
    parser.add_argument(
        "--max-megapixels",
        type=float,
        default=100.0,
        metavar="MP",
        help="larger pictures are refused (default: 100)",
    )
    decoding = parser.add_argument_group("decoding", "greedy unless told otherwise")
    decoding.add_argument(
        "--max-new-tokens",
        type=positive,
        default=max_new_tokens,
        metavar="N",
        help=f"longest answer (default: {max_new_tokens})",
    )
    decoding.add_argument(
        "--beams", type=positive, default=1, metavar="N", help="above 1: beam search"
    )
    decoding.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="above 0: draw at random"
    )
    decoding.add_argument("--top-k", type=positive, metavar="K", help="draw from the K likeliest")
    decoding.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest that reach P together"
    )
    decoding.add_argument(
        "--best-of", type=positive, default=1, metavar="N", help="keep the likeliest of N draws"
    )
    decoding.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="a PaliGemma's folder or file; vla/assets/paligemma_tabletop ships for trying out",
    )
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights (default: bfloat16, or float32 on a CPU that does not multiply that)",
    )
    add_compile(parser)


def add_compile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compile",
        action="store_true",
        help="half a minute more at the start, faster answers from then on; needs a C++ compiler",
    )


def _add_language(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lang", default="en", metavar="CODE", help="of the answer (default: en)")


def _add_things(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--things", nargs="+", required=True, metavar="NAME", help="what to look for"
    )
    parser.add_argument(
        "--restrict", action="store_true", help="let the model say nothing but well-formed boxes"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write the pictures there with what was found"
    )


def _add_codec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--codec",
        type=Path,
        metavar="FILE",
        help="the mask codec, such as vae-oid.npz (default: the one in DIR)",
    )
