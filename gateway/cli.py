"""The command line: parse, call one function, print. Each command imports what it needs when it runs, so that help is quick.

Exit codes: 0 done, 1 a model cannot be used or a download failed, 2 Tandem cannot start as asked (one line on stderr says why), 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.startup import Wishes

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
    _add_options(check, "config")
    check.set_defaults(run=_check)

    models = commands.add_parser("models", help="list the models, or download their weights", description="List the public model names.")
    _add_options(models, "config")
    models.set_defaults(run=_models)
    actions = models.add_subparsers(title="actions", metavar="ACTION")
    listing = actions.add_parser("list", help="list the public model names (the default)")
    _add_options(listing, "config", inherited=True)
    listing.set_defaults(run=_models)
    download = actions.add_parser(
        "download",
        help="fetch the weights of a model",
        description="Fetch the weights of a model's local deployments into the Hub's cache. Started again, it fetches what is missing.",
    )
    download.add_argument("name", metavar="NAME", help="public model name, as `tandem models` lists it")
    _add_options(download, "config", inherited=True)
    download.set_defaults(run=_download)

    # Only for the help: main() takes it before the parser sees what pytest shall see.
    commands.add_parser(
        "test",
        help="run the linters, the type checker and all tests; arguments go to pytest (then the tests only)",
        add_help=False,
    )
    # Likewise: a bench has options of its own, and comes with a checkout only.
    commands.add_parser("bench", help="measure Tandem beside other gateways: `bench chat`", add_help=False)
    return top


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

    return startup.reported(lambda: listing.check(startup.choose(_wishes(options), os.environ), os.environ))


def _models(options: argparse.Namespace) -> int:
    from gateway import listing, startup

    return startup.reported(lambda: listing.models(startup.choose(_wishes(options), os.environ), os.environ))


def _download(options: argparse.Namespace) -> int:
    from gateway import downloads, startup

    return startup.reported(lambda: downloads.download(startup.choose(_wishes(options), os.environ).settings, options.name))


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
