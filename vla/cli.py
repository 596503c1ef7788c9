"""The `vla` command.

Every command is one function that adds its arguments and one that runs it. The second imports what
it needs, so that `--help` and mistakes in the arguments are answered before torch is loaded.
"""

import argparse
import ast
import os
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from vla.assets import PALIGEMMA_TABLETOP
from vla.cli_bench import add_bench
from vla.cli_data import DATA_COMMANDS
from vla.cli_plan import add_plan
from vla.cli_recipe import RECIPE_COMMANDS
from vla.cli_replay import add_replay
from vla.cli_serve import add_serve
from vla.cli_vlm import VLM_COMMANDS, positive

OUR_PACKAGES = ("backbone", "action_expert", "vla", "envs")
USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells count


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command in `arguments` (those of the process by default) and exit.

    Exit status: 0 done, 1 a check failed, 2 something the user can put right (one line on stderr,
    the traceback only with `--debug` or VLA_DEBUG=1), 130 interrupted; errors that have an
    `exit_status` end with it (`vla.training.faults`). Anything else is a bug of ours and keeps its
    traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    args, rest = _parser().parse_known_args(arguments)
    if rest and not args.takes_rest:  # some hand them to a config
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.overrides = rest
    try:
        status = args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)
    except Exception as error:
        if args.debug or not is_user_error(error):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_status", USER_ERROR_STATUS))
    sys.exit(status or 0)


def is_user_error(error: Exception) -> bool:
    """Whether `error` tells the user about something they can put right, rather than a bug.

    That is a ValueError or ImportError raised by a line of these packages (the same error raised
    inside a library is a crash), or the system refusing a file: missing, not allowed, disk full.
    """
    if hasattr(error, "exit_status"):
        return True
    if isinstance(error, OSError):
        return error.errno is not None or _raised_by_us(error.__traceback__)
    return isinstance(error, ValueError | ImportError) and _raised_by_us(error.__traceback__)


def one_line(error: Exception) -> str:
    """The error's message without line breaks, with the file's name where the system gave one."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    return " ".join(str(error).split())


def _raised_by_us(trace: TracebackType | None) -> bool:
    frames = traceback.walk_tb(trace)
    modules = [frame.f_globals.get("__name__", "") for frame, _ in frames]
    return bool(modules) and modules[-1].partition(".")[0] in OUR_PACKAGES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vla",
        description="Train, roll out and inspect π0-style robot policies, and ask their VLM.",
    )
    parser.set_defaults(takes_rest=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (
        _add_demo,
        _add_collect,
        _add_train,
        add_plan,
        add_replay,
        _add_eval,
        _add_stats,
        _add_check,
        _add_inspect,
        _add_convert,
        *DATA_COMMANDS,
        *RECIPE_COMMANDS,
        *VLM_COMMANDS,
        add_serve,
        add_bench,
    ):
        command = add(commands)
        command.add_argument(
            "--debug",
            action="store_true",
            default=os.environ.get("VLA_DEBUG", "0") not in ("", "0"),
            help="show tracebacks of user errors too (also VLA_DEBUG=1)",
        )
        command.set_defaults(parser=command)
    return parser


def _add_env_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--image-size", type=positive, metavar="PIXELS", help=f"side of pictures; {default}"
    )
    parser.add_argument(
        "--env-kwargs",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="further arguments of the environment, such as zoom=1.8",
    )


def _env_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """What `--env-kwargs` and `--image-size` say; a value that isn't a Python literal is text."""
    kwargs: dict[str, Any] = {}
    for word in args.env_kwargs:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--env-kwargs expects NAME=VALUE, such as zoom=1.8; got {word!r}")
        try:
            kwargs[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            kwargs[name] = text
    if args.image_size is not None:
        kwargs["image_size"] = args.image_size
    return kwargs


# --- demo -----------------------------------------------------------------------------------------


def _add_demo(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "demo",
        help="collect, train, roll out and report, in the built-in world",
        description="Collect demonstrations on Tabletop-easy-v0, train a small π0 on them, roll it "
        "out on unseen scenes with the right and with swapped instructions, and write report.html.",
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/demo"), metavar="DIR")
    parser.add_argument(
        "--quick", action="store_true", help="the same path in under 2 minutes; checks that it runs"
    )
    parser.add_argument("--episodes", type=positive, metavar="N", help="demonstrations to collect")
    parser.add_argument("--steps", type=positive, metavar="N", help="training steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--policy", choices=("pi0", "pi05"), default="pi0", help="which model to train"
    )
    parser.add_argument(
        "--init",
        type=lambda text: None if text == "none" else Path(text),
        default=PALIGEMMA_TABLETOP,
        metavar="DIR",
        help="the PaliGemma to start from (default: one that ships), none: random weights",
    )
    parser.add_argument(
        "--curve",
        type=positive,
        metavar="N",
        help="success against steps: roll out after every N steps (default: 400)",
    )
    parser.add_argument(
        "--curve-episodes", type=positive, metavar="N", help="episodes at each (default: 20)"
    )
    parser.set_defaults(run=_run_demo)
    return parser


def _run_demo(args: argparse.Namespace) -> int:
    from vla.demo import run_demo

    return run_demo(
        args.output_dir,
        quick=args.quick,
        episodes=args.episodes,
        steps=args.steps,
        curve=args.curve,
        curve_rollouts=args.curve_episodes,
        seed=args.seed,
        policy=args.policy,
        init=args.init,
    )


# --- collect --------------------------------------------------------------------------------------


def _add_collect(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "collect",
        help="demonstrations of a scripted expert, as a LeRobotDataset v3",
        description="Run the scripted expert of ENV and keep its successful episodes as a "
        "LeRobotDataset v3 in DIR, which must not exist yet. Several ENVs take turns.",
    )
    parser.add_argument("env", nargs="+", metavar="ENV", help="such as Tabletop-easy-v0")
    parser.add_argument("--episodes", type=positive, required=True, metavar="N", help="in all")
    parser.add_argument("--root", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode (default: 0)")
    parser.add_argument(
        "--noise",
        type=float,
        default=0.2,
        metavar="STD",
        help="added to executed, not to stored, actions (default: 0.2)",
    )
    parser.add_argument(
        "--hold",
        type=positive,
        default=1,
        metavar="STEPS",
        help="how long one draw of the noise lasts (default: 1)",
    )
    _add_env_arguments(parser, "default: the environment's")
    parser.set_defaults(run=_run_collect)
    return parser


def _run_collect(args: argparse.Namespace) -> None:
    from vla.data.collect import collect

    collect(
        args.env,
        args.episodes,
        args.root,
        seed=args.seed,
        noise=args.noise,
        hold=args.hold,
        env_kwargs=_env_kwargs(args),
    )
    print(f"{args.episodes} episodes of {', '.join(args.env)} in {args.root}")


# --- train ----------------------------------------------------------------------------------------


def _add_train(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "train",
        help="train the run that a config file describes",
        description="Train the run in CONFIG, a Python file that ends in `config = "
        "TrainConfig(...)`. Every field can be overridden by its name: --steps 20 --optim.lr 1e-4; "
        "vla train CONFIG --help lists them.",
        usage="vla train CONFIG [--field VALUE ...] [--resume] [--debug]",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=_FieldHelp, nargs=0, help="show this, or fields")
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint of this run"
    )
    parser.set_defaults(run=_run_train, takes_rest=True)
    return parser


class _FieldHelp(argparse.Action):
    """`--help` after a config is for the config, whose fields it lists."""

    def __call__(self, parser, namespace, values, option_string=None):
        if getattr(namespace, "config", None) is None:
            parser.print_help()
            parser.exit()
        namespace.help = True


def _run_train(args: argparse.Namespace) -> None:
    from vla.config import load_config
    from vla.training.loop import train

    more = ["--help"] if args.help else []  # which ends here
    train(load_config(args.config, [*args.overrides, *more]), resume=args.resume)


# --- eval -----------------------------------------------------------------------------------------


def _add_eval(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "eval",
        help="roll a policy out: success with intervals, latency, videos",
        description="Roll the policy in CHECKPOINT out for N episodes of ENV, print success per "
        "task with 95 % Wilson intervals, and save the table (eval.json) and videos.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a policy's folder")
    parser.add_argument("--env", required=True, metavar="ENV")
    parser.add_argument("--episodes", type=positive, required=True, metavar="N")
    parser.add_argument(
        "--seed", type=int, default=1_000_000, help="seed of the first episode (default: unseen)"
    )
    parser.add_argument(
        "--replan-every", type=positive, metavar="STEPS", help="default: after the whole chunk"
    )
    parser.add_argument("--num-envs", type=positive, default=16, metavar="N", help="side by side")
    parser.add_argument("--max-steps", type=positive, metavar="N", help="default: the env's own")
    parser.add_argument(
        "--swap",
        action="store_true",
        help="tabletop: name another object than the seed would; shows whether the policy listens",
    )
    _add_env_arguments(parser, "default: the policy's, where ENV takes it")
    parser.add_argument("--videos", type=int, default=4, metavar="N", help="episodes to film")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="default: outputs/eval/ENV")
    parser.set_defaults(run=_run_eval)
    return parser


def _run_eval(args: argparse.Namespace) -> None:
    import envs
    from vla.evaluation.evaluate import evaluate, save_evaluation
    from vla.policy import Policy

    policy = Policy.from_pretrained(args.checkpoint)
    kwargs = _env_kwargs(args)
    if args.image_size is None and "image_size" in (envs.arguments(args.env) or ()):
        kwargs["image_size"] = policy.config.image_size  # drawn so, not resized to it
    evaluation = evaluate(
        policy,
        args.env,
        range(args.seed, args.seed + args.episodes),
        num_envs=args.num_envs,
        replan_every=args.replan_every,
        max_steps=args.max_steps,
        options={"swap": True} if args.swap else None,
        env_kwargs=kwargs,
        record=args.videos,
        progress=True,
    )
    print(evaluation.table.text())
    if args.swap:
        reached = sum(bool(e.original_success) for e in evaluation.episodes)
        print(f"the goal that the seed would have given: {reached}/{args.episodes}")
    folder = args.output_dir or Path("outputs/eval") / args.env.replace("/", "-")
    save_evaluation(evaluation, folder)
    print(f"saved in {folder}")


# --- stats, check ---------------------------------------------------------------------------------


def _add_stats(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "stats",
        help="normalisation statistics of a dataset",
        description="Print mean, standard deviation, 1st and 99th percentile and range of every "
        "state and action dimension, read from the dataset's parquet files.",
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="a LeRobotDataset v3's root")
    parser.set_defaults(run=_run_stats)
    return parser


def _run_stats(args: argparse.Namespace) -> None:
    from vla.data.stats import norm_stats

    print(norm_stats(args.dataset))


def _add_check(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "check",
        help="a dataset's faults, by episode and frame",
        description="Look through DATASET and list its faults. Exit status 1 if there are any.",
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="a LeRobotDataset v3's root")
    parser.add_argument("--decode", action="store_true", help="look at every picture too")
    parser.set_defaults(run=_run_check)
    return parser


def _run_check(args: argparse.Namespace) -> int:
    from vla.data.check import check

    faults = check(args.dataset, decode=args.decode)
    for fault in faults:
        print(fault)
    print(f"{args.dataset}: {len(faults)} faults" if faults else f"{args.dataset}: no faults")
    return 1 if faults else 0


# --- inspect, convert -----------------------------------------------------------------------------


def _add_inspect(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "inspect",
        help="what a folder or file of weights holds",
        description="Say what model stands in PATH, a policy of this package, LeRobot or openpi or "
        "a PaliGemma: sizes, parameters, statistics, cameras, and what is missing. Reads headers "
        "alone.",
    )
    parser.add_argument("path", type=Path, metavar="PATH")
    parser.add_argument(
        "--asset", metavar="NAME", help="the robot, where an openpi folder has several"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run_inspect)
    return parser


def _run_inspect(args: argparse.Namespace) -> None:
    import json

    from vla.description import describe

    description = describe(args.path, args.asset)
    if args.json:
        print(json.dumps(description.as_json(), indent=2, ensure_ascii=False))
    else:
        print(description)


def _add_convert(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "convert",
        help="a policy or PaliGemma from one format to another",
        description="Write the policy in SRC (this package's, LeRobot's or openpi's), or the "
        "PaliGemma (this package's, Hugging Face's or big_vision's), to the new folder DST. "
        "Weights keep their dtype and every bit.",
    )
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("destination", type=Path, metavar="DST")
    parser.add_argument(
        "--to",
        required=True,
        choices=("lerobot", "openpi-pytorch", "huggingface", "vla"),
        help="huggingface: a PaliGemma, or the one inside; vla: this package's own folder",
    )
    parser.add_argument(
        "--asset", metavar="NAME", help="the robot, where an openpi folder has several"
    )
    parser.add_argument(
        "--horizon", type=positive, metavar="N", help="actions in a chunk, where SRC does not say"
    )
    parser.add_argument(
        "--stats", type=Path, metavar="FILE", help="a norm_stats.json instead of the source's"
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="PaliGemma's, for vla, where SRC has none"
    )
    parser.set_defaults(run=_run_convert)
    return parser


def _run_convert(args: argparse.Namespace) -> None:
    from vla.convert import convert

    convert(
        args.source,
        args.destination,
        args.to,
        asset=args.asset,
        horizon=args.horizon,
        stats=args.stats,
        tokenizer=args.tokenizer,
    )
    print(f"{args.source} as {args.to} in {args.destination}")
