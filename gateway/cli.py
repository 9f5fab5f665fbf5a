"""The command line: parse, call one function, print. Each command imports what it needs when it runs, so that help is quick.

Exit codes: 0 done, 1 a model cannot be used, or a download or an installation failed, 2 Tandem cannot start as asked (one line on stderr
says why), 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.engine_control import Control
    from gateway.startup import Choice, Wishes

PROJECT = Path(__file__).resolve().parent.parent

Command = Callable[[argparse.Namespace], int]


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["test"]:  # everything behind it is pytest's
        return _test(given[1:])
    if given[:1] == ["bench"]:
        return _bench(given[1:])
    options = parser().parse_args(given)
    run: Command = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `tandem check | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    from config import __version__

    top = argparse.ArgumentParser(prog="tandem", description="One OpenAI-style API for chat and images, local and hosted.")
    top.add_argument("--version", action="version", version=f"tandem {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    up = commands.add_parser("up", help="run the API and the chat app", description="Run the API and the chat app until Ctrl-C.")
    _add_options(up, "config", "data", "host", "port", "chat-port")
    up.set_defaults(run=_up)

    serve = commands.add_parser("serve", help="run the API only", description="Run the API until Ctrl-C.")
    _add_options(serve, "config", "data", "host", "port")
    serve.set_defaults(run=_serve)

    chat = commands.add_parser(
        "chat",
        help="run the chat app only",
        description="Run the chat app until Ctrl-C. It talks to the API at --host and --port, or at TANDEM_BASE_URL where that is set.",
    )
    _add_options(chat, "config", "data", "host", "port", "chat-port")
    chat.set_defaults(run=_chat)

    check = commands.add_parser(
        "check",
        help="validate the configuration and say what is missing",
        description="Validate the configuration; say for each public model name who answers for it, in order, and what is missing.",
    )
    _add_options(check, "config", "data")
    check.set_defaults(run=_check)

    models = commands.add_parser("models", help="list the models, or download their weights", description="List the public model names.")
    _add_options(models, "config", "data")
    models.set_defaults(run=_models)
    actions = models.add_subparsers(title="actions", metavar="ACTION")
    listing = actions.add_parser("list", help="list the public model names (the default)")
    _add_options(listing, "config", "data", inherited=True)
    listing.set_defaults(run=_models)
    download = actions.add_parser(
        "download",
        help="fetch the weights of a model",
        description="Fetch the weights of a model's local deployments into the Hub's cache. Started again, it fetches what is missing.",
    )
    download.add_argument("name", metavar="NAME", help="public model name, as `tandem models` lists it")
    _add_options(download, "config", inherited=True)
    download.set_defaults(run=_download)

    _add_engines(commands)
    _add_plan(commands)
    _add_keys(commands)
    usage = commands.add_parser(
        "usage",
        help="show what was used: requests, tokens, money",
        description="Show what was used: requests, tokens, money and times, by key, model or day (in UTC).",
    )
    usage.add_argument(
        "--by", type=groups, metavar="LIST", default="key,model", help="key, model, day, or several with commas (default: key,model)"
    )
    usage.add_argument("--since", metavar="TIME", default="30d", help="7d, 12h, a day like 2026-11-01 (in UTC), or all (default: 30d)")
    usage.add_argument("--key", metavar="ID", help="of this key only")
    usage.add_argument("--json", action="store_true", help="as one JSON object")
    _add_options(usage, "config", "data")
    usage.set_defaults(run=_usage)

    # Only for the help: main() takes it before the parser sees what pytest shall see.
    commands.add_parser(
        "test",
        help="run the linters, the type checker and all tests; arguments go to pytest (then the tests only)",
        add_help=False,
    )
    # Likewise: a bench has options of its own, and comes with a checkout only.
    commands.add_parser("bench", help="measure Tandem beside other gateways: `bench chat`", add_help=False)
    return top


def _add_engines(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    engines = commands.add_parser(
        "engines",
        help="install and remove engines (vLLM); look at, load and unload those that run",
        description="Engines in environments of their own below the data directory: install, list, upgrade and remove them."
        " The engines of a running gateway: look at them, load and unload them.",
    )
    _add_options(engines, "config", "data")
    engines.set_defaults(run=_list_engines, json=False)
    actions = engines.add_subparsers(title="actions", metavar="ACTION")
    listing = actions.add_parser("list", help="list what is installed (the default)")
    listing.add_argument("--json", action="store_true", help="as JSON")
    _add_options(listing, "config", "data", inherited=True)
    listing.set_defaults(run=_list_engines)
    for name, run, text, description in (
        ("install", _install_engine, "install one", "Make an environment for an engine, at the version that this Tandem is tested with."),
        ("upgrade", _upgrade_engine, "bring it to this Tandem's version", "Make what is installed equal to this Tandem's locks."),
        ("remove", _remove_engine, "remove one", "Remove an engine's environment, unless an engine runs from it."),
    ):
        action = actions.add_parser(name, help=text, description=description)
        action.add_argument("engine", metavar="ENGINE", help="vllm")
        default = "what this machine has" if name == "install" else "what is installed"
        action.add_argument("--device", metavar="DEVICE", help=f"cuda, rocm or cpu (default: {default})")
        _add_options(action, "data", inherited=True)
        action.set_defaults(run=run)
    _add_engine_control(actions)


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    plan = commands.add_parser(
        "plan",
        help="show how a model fits into the memory of the GPUs under vLLM",
        description="Show what a model takes of the memory of GPUs under vLLM: weights, KV cache, state, what is left, the context and"
        " the concurrency that this gives, and the flags that an engine of `kind: vllm` is started with.",
    )
    plan.add_argument(
        "model", metavar="MODEL", nargs="?", help="a public model name, a checkpoint's id or its folder (default: the first one on vLLM)"
    )
    plan.add_argument(
        "--memory", type=gigabytes, metavar="GB[,GB...]", default=(), help="memory of each GPU (default: what is there, as it is free now)"
    )
    plan.add_argument("--gpus", type=count, metavar="N", help="how many GPUs (default: all that are there, or one)")
    plan.add_argument("--text-only", action="store_true", help="without the vision tower")
    plan.add_argument("--json", action="store_true", help="as one JSON object, in bytes")
    _add_options(plan, "config")
    plan.set_defaults(run=_plan)


def _add_keys(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    keys = commands.add_parser(
        "keys",
        help="make, list and revoke API keys",
        description="Make, list and revoke API keys. A running gateway sees a change within about a second.",
    )
    _add_options(keys, "data")
    keys.set_defaults(run=_list_keys, json=False)
    actions = keys.add_subparsers(title="actions", metavar="ACTION")
    create = actions.add_parser(
        "create", help="make a key", description="Make a key and print it, this once: its digest is all that is kept."
    )
    create.add_argument("--name", required=True, metavar="NAME", help="who or what uses it")
    create.add_argument("--models", metavar="LIST", help="public model names it may use, with commas; * for any characters (default: all)")
    create.add_argument("--expires", metavar="WHEN", help="30d, 12h or a date like 2027-01-31, UTC (default: never)")
    create.add_argument("--rpm", type=count, metavar="N", help="requests per minute (default: no limit)")
    create.add_argument("--tpm", type=count, metavar="N", help="tokens per minute (default: no limit)")
    create.add_argument("--concurrent", type=count, metavar="N", help="requests at the same time (default: no limit)")
    create.add_argument("--budget-day", type=money, metavar="USD", help="US dollars in a UTC day (default: no limit)")
    create.add_argument("--budget-month", type=money, metavar="USD", help="US dollars in a UTC month (default: no limit)")
    create.add_argument("--admin", action="store_true", help="it may make, list and revoke keys")
    _add_options(create, "data", inherited=True)
    create.set_defaults(run=_create_key)
    listing = actions.add_parser("list", help="list the keys (the default)")
    listing.add_argument("--json", action="store_true", help="as JSON")
    _add_options(listing, "data", inherited=True)
    listing.set_defaults(run=_list_keys)
    revoke = actions.add_parser("revoke", help="end a key", description="End a key: the next request with it is refused.")
    revoke.add_argument("id", metavar="ID", help="as `tandem keys list` shows it")
    _add_options(revoke, "data", inherited=True)
    revoke.set_defaults(run=_revoke_key)


def _add_engine_control(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Those that talk to the running gateway."""
    status = actions.add_parser("status", help="show what the running gateway's engines do")
    status.add_argument("--json", action="store_true", help="as JSON")
    _add_options(status, "data", inherited=True)
    status.set_defaults(run=_engine_status)
    load = actions.add_parser("load", help="start an engine", description="Start an engine, even one that was given up, and wait for it.")
    load.add_argument("id", metavar="ID", help="as `tandem engines status` shows it")
    load.add_argument("--no-wait", action="store_true", help="return as soon as it starts")
    _add_options(load, "data", inherited=True)
    load.set_defaults(run=_load_engine)
    unload = actions.add_parser(
        "unload", help="stop an engine", description="Stop an engine once nobody uses it; the next request starts it."
    )
    unload.add_argument("id", metavar="ID", help="as `tandem engines status` shows it")
    unload.add_argument(
        "--drain", type=seconds, metavar="SECONDS", default=30.0, help="how long requests under way may still take (default: 30)"
    )
    _add_options(unload, "data", inherited=True)
    unload.set_defaults(run=_unload_engine)


def _add_options(command: argparse.ArgumentParser, *groups: str, inherited: bool = False) -> None:
    """inherited: the parent command has them too, and what was given there stays."""
    options: Mapping[str, list[tuple[str, Callable[[str], object], str, str]]] = {
        "config": [
            ("--config", Path, "FILE", "your configuration (default: tandem.yaml in this folder, if there is one)"),
            ("--profile", str, "NAME", "demo, gpu, hosted or laptop (default: chosen by what this machine has)"),
        ],
        "data": [("--data-dir", Path, "DIR", "where keys, logs and results live (default: ~/.local/share/tandem)")],
        "host": [("--host", str, "ADDRESS", "address to listen on (default: 127.0.0.1, this machine only)")],
        "port": [("--port", port_number, "PORT", "port of the API (default: 8000; 0 takes a free one)")],
        "chat-port": [("--chat-port", port_number, "PORT", "port of the chat app (default: 8501; 0 takes a free one)")],
    }
    for group in groups:
        for name, kind, metavar, text in options[group]:
            command.add_argument(name, type=kind, metavar=metavar, help=text, default=argparse.SUPPRESS if inherited else None)


def port_number(text: str) -> int:
    """A TCP port. Raises argparse's error."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; use a number from 0 to 65535")
    return int(text)


def count(text: str) -> int:
    """A whole number above zero. Raises argparse's error."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no limit; use a whole number above 0, or leave the option out for no limit")
    return int(text)


def gigabytes(text: str) -> tuple[float, ...]:
    """Sizes above zero, with commas between them. Raises argparse's error."""
    try:
        sizes = tuple(float(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or not all(0 < size < 1e6 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is no memory of GPUs; use GB with commas between them, for example 24 or 24,24")
    return sizes


def money(text: str) -> float:
    """An amount above zero. Raises argparse's error."""
    try:
        amount = float(text)
    except ValueError:
        amount = 0.0
    if not 0 < amount < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no budget; use a number of US dollars above 0, or leave the option out for no limit")
    return amount


def seconds(text: str) -> float:
    """A time of an hour at most. Raises argparse's error."""
    try:
        time_s = float(text)
    except ValueError:
        time_s = -1.0
    if not 0 <= time_s <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no such time; use a number of seconds from 0 to 3600")
    return time_s


def groups(text: str) -> tuple[str, ...]:
    """What --by names. Raises argparse's error."""
    known = {"key": "key_id", "model": "model", "day": "day"}
    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = next((word for word in words if word not in known), None)
    if unknown is not None:
        raise argparse.ArgumentTypeError(f"{unknown!r} is nothing to sort usage by; use key, model or day")
    return tuple(known[word] for word in words)


def _up(options: argparse.Namespace) -> int:
    from gateway import running, startup

    return startup.reported(lambda: running.up(_wishes(options), os.environ))


def _serve(options: argparse.Namespace) -> int:
    from gateway import running, startup

    return startup.reported(lambda: running.serve_only(_wishes(options), os.environ))


def _chat(options: argparse.Namespace) -> int:
    from gateway import running, startup

    return startup.reported(lambda: running.chat_only(_wishes(options), os.environ))


def _check(options: argparse.Namespace) -> int:
    from gateway import listing, startup

    return startup.reported(lambda: listing.check(*_chosen(options)))


def _models(options: argparse.Namespace) -> int:
    from gateway import listing, startup

    return startup.reported(lambda: listing.models(*_chosen(options)))


def _download(options: argparse.Namespace) -> int:
    from gateway import downloads, startup

    return startup.reported(lambda: downloads.download(startup.choose(_wishes(options), os.environ).settings, options.name))


def _list_engines(options: argparse.Namespace) -> int:
    def run() -> int:
        from gateway import engine_commands

        choice, _, data_dir = _chosen(options)
        return engine_commands.show(data_dir, choice.settings, options.json)

    return _with_locks(run)


def _install_engine(options: argparse.Namespace) -> int:
    def run() -> int:
        from gateway import engine_commands

        return engine_commands.install(_data_dir(options), options.engine, options.device, os.environ)

    return _with_locks(run)


def _upgrade_engine(options: argparse.Namespace) -> int:
    def run() -> int:
        from gateway import engine_commands

        return engine_commands.upgrade(_data_dir(options), options.engine, options.device)

    return _with_locks(run)


def _remove_engine(options: argparse.Namespace) -> int:
    def run() -> int:
        from gateway import engine_commands

        return engine_commands.remove(_data_dir(options), options.engine, options.device)

    return _with_locks(run)


def _with_locks(run: Callable[[], int]) -> int:
    from gateway import startup

    if not (PROJECT / "requirements" / "engine.py").exists():
        print("tandem: the engines' locks come with a checkout of Tandem, not with an installed package", file=sys.stderr)
        return 2
    return startup.reported(run)


def _plan(options: argparse.Namespace) -> int:
    from gateway import plan_report, startup

    wanted = plan_report.Wanted(options.model, options.memory, options.gpus, options.text_only, options.json)
    return startup.reported(lambda: plan_report.report(startup.choose(_wishes(options), os.environ).settings, wanted, os.environ))


def _create_key(options: argparse.Namespace) -> int:
    from config.schema import Limits
    from gateway import key_commands, startup

    limits = Limits(
        requests_per_minute=options.rpm,
        tokens_per_minute=options.tpm,
        concurrent_requests=options.concurrent,
        budget_usd_per_day=options.budget_day,
        budget_usd_per_month=options.budget_month,
    )
    asked = key_commands.Asked(options.name, options.models, options.expires, options.admin, limits)
    return startup.reported(lambda: key_commands.create(startup.data_dir_of(_wishes(options), os.environ), asked))


def _list_keys(options: argparse.Namespace) -> int:
    from gateway import key_commands, startup

    return startup.reported(lambda: key_commands.show(startup.data_dir_of(_wishes(options), os.environ), options.json))


def _revoke_key(options: argparse.Namespace) -> int:
    from gateway import key_commands, startup

    return startup.reported(lambda: key_commands.revoke(startup.data_dir_of(_wishes(options), os.environ), options.id))


def _engine_status(options: argparse.Namespace) -> int:
    from gateway import engine_control, startup

    return startup.reported(lambda: engine_control.status(_control(options), as_json=options.json))


def _load_engine(options: argparse.Namespace) -> int:
    from gateway import engine_control, startup

    return startup.reported(lambda: engine_control.load(_control(options), options.id, wait=not options.no_wait))


def _unload_engine(options: argparse.Namespace) -> int:
    from gateway import engine_control, startup

    return startup.reported(lambda: engine_control.unload(_control(options), options.id, options.drain))


def _control(options: argparse.Namespace) -> Control:
    """Raises CannotStart."""
    from gateway import startup
    from gateway.engine_control import Control

    return Control(startup.data_dir_of(_wishes(options), os.environ), os.environ)


def _usage(options: argparse.Namespace) -> int:
    from gateway import startup, usage_report

    return startup.reported(
        lambda: usage_report.report(
            startup.choose(_wishes(options), os.environ).settings,
            startup.data_dir_of(_wishes(options), os.environ),
            by=options.by,
            since=options.since,
            key_id=options.key,
            as_json=options.json,
        )
    )


def _chosen(options: argparse.Namespace) -> tuple[Choice, Mapping[str, str], Path]:
    """Configuration, environment and data directory."""
    from gateway import startup

    return startup.choose(_wishes(options), os.environ), os.environ, _data_dir(options)


def _data_dir(options: argparse.Namespace) -> Path:
    from gateway import startup

    return startup.data_dir_of(_wishes(options), os.environ)


def _wishes(options: argparse.Namespace) -> Wishes:
    from gateway.startup import Wishes

    given = vars(options)
    return Wishes(
        config_file=given.get("config"),
        profile=given.get("profile"),
        data_dir=given.get("data_dir"),
        host=given.get("host"),
        port=given.get("port"),
        chat_port=given.get("chat_port"),
    )


def _test(arguments: list[str]) -> int:
    checks = PROJECT / "requirements" / "checks.py"
    if not checks.exists():
        print("tandem: the tests come with a checkout of Tandem, not with an installed package", file=sys.stderr)
        return 2
    from requirements.checks import run

    return run(arguments)


def _bench(arguments: list[str]) -> int:
    if not (PROJECT / "bench" / "cli.py").exists():
        print("tandem: the benches come with a checkout of Tandem, not with an installed package", file=sys.stderr)
        return 2
    from bench.cli import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
