"""``ringhold lock``: runs a command while a lock is held.

Its arguments are parsed by argparse: loading Typer takes as long as the rest of the start.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import ringhold
from ringhold.cli.command import SIGNALLED, Command, Inbox, Interrupted, end_by
from ringhold.cli.exits import exit_code
from ringhold.errors import LockLost, RingholdError

LOST = 124
"""Exit code when the lock was lost, as timeout(1) has it for a command that it ended."""

ABOUT = """\
Run a command while holding a lock, like flock(1). What follows the command's
first word is the command's own, with or without "--" before it.
"""

PROMISES = """\
The command finds the lock's name in $RINGHOLD_LOCK_NAME and its fencing token
in $RINGHOLD_LOCK_TOKEN: a number that only grows, so that who compares it can
refuse a late write.

exit code: the command's own; 128 + n if signal n killed it, 127 if it was not
found, 126 if it cannot be executed; 124 if the lock was lost, whatever the
command made of that. Without the lock: what --conflict-exit-code says, 2 for
wrong usage, 3 for a cluster that does not answer, 1 for other trouble.

HUP, INT, QUIT, TERM, USR1 and USR2 are passed on to the command's process
group; this program dies of one of them if the command does, or while it waits
for the lock, so that a shell's loop around it ends at Ctrl-C.

The lock is given back when the command has ended; what it left in the
background runs on without it. When the lock is lost, the group gets SIGTERM,
and SIGKILL when the command has ended or --kill-after is over. Called in the
foreground of a terminal, the command stays in the caller's group, so that it
can read from the terminal, and is signalled alone.

Is this program killed with SIGKILL, the kernel kills the command too, but not
what the command started, nor a command that runs with other privileges (sudo).
The lock passes on at once, and those may still write: that is what the token
is for.
"""


def _number(kind: type[float], low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low:g} to {high:g}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def make_parser() -> argparse.ArgumentParser:
    seconds = _number(float, 0, float("inf"))
    parser = argparse.ArgumentParser(
        "ringhold lock",
        usage="%(prog)s -c CLUSTER [options] NAME [--] COMMAND [ARGUMENT…]",
        description=ABOUT,
        epilog=PROMISES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="the lock's name")
    add(
        "--cluster",
        "-c",
        metavar="URL",
        default=os.environ.get("RINGHOLD_CLUSTER"),
        help="URL or directory of the cluster; $RINGHOLD_CLUSTER if not given",
    )
    add("--shared", "-s", action="store_true", help="share it with others that ask for the same")
    waiting = parser.add_mutually_exclusive_group()
    waiting.add_argument(
        "--timeout",
        "-w",
        metavar="SECONDS",
        type=seconds,
        help="how long to wait; for ever if not given, 0 tries once",
    )
    waiting.add_argument(
        "--nonblock",
        "-n",
        dest="timeout",
        action="store_const",
        const=0.0,
        help="do not wait: --timeout 0",
    )
    add(
        "--conflict-exit-code",
        "-E",
        metavar="CODE",
        type=_number(int, 0, 255),
        default=1,
        help="when the lock was not granted in time (1)",
    )
    add(
        "--session-ttl",
        metavar="SECONDS",
        type=seconds,
        default=10.0,
        help="after which a stopped process or machine loses the lock (10)",
    )
    add(
        "--kill-after",
        metavar="SECONDS",
        type=seconds,
        default=5.0,
        help="from SIGTERM to SIGKILL when the lock was lost (5)",
    )
    add("--quiet", "-q", action="store_true", help="do not say that the lock was not granted")
    add(
        "--json",
        action="store_true",
        help="at the end, report in one line of JSON on standard error",
    )
    return parser


def split_arguments(
    arguments: Sequence[str], with_value: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Our own arguments, and the command: what follows ``--``, or else begins with the second
    word that is neither an option nor the value of one of `with_value`."""
    words, index = 0, 0
    while index < len(arguments):
        argument = arguments[index]
        if argument == "--":
            # Before a NAME that looks like an option it stays.
            own = index if words else index + 2
            rest = list(arguments[own:])
            return list(arguments[:own]), rest[1:] if rest[:1] == ["--"] else rest
        if argument.startswith("--"):
            index += argument in with_value
        elif argument.startswith("-") and argument != "-":
            # As in -nE5: flags, and at most one option whose value is the rest or comes next.
            valued = [at for at, letter in enumerate(argument) if f"-{letter}" in with_value]
            index += bool(valued) and valued[0] == len(argument) - 1
        else:
            words += 1
            if words == 2:
                return list(arguments[:index]), list(arguments[index:])
        index += 1
    return list(arguments), []


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = make_parser()
    with_value = [
        text for action in parser._actions if action.nargs is None for text in action.option_strings
    ]
    own, command = split_arguments(arguments, with_value)
    options = parser.parse_args(own)
    if options.cluster is None:
        parser.error("which cluster? Give --cluster or set RINGHOLD_CLUSTER")
    if not command:
        parser.error("which command is to be run?")
    return options, command


def _say(text: object) -> None:
    print(f"ringhold: {text}", file=sys.stderr, flush=True)


@contextmanager
def _opened(url: str, session_ttl: float) -> Iterator[ringhold.Cluster]:
    """An open cluster. What fails at its end is told, but the command's outcome stands: what it
    held passes on when this process ends."""
    cluster = ringhold.open(url, create=False, session_ttl=session_ttl)
    try:
        yield cluster
    finally:
        try:
            cluster.close()
        except RingholdError as error:
            _say(f"closing {cluster.url}: {error}")


def _held_by(cluster: ringhold.Cluster, name: str) -> str:
    """Whom to ask about a lock that was not granted, as far as that can be told."""
    try:
        holders = cluster.locks.holders(os.fsencode(name))
    except RingholdError:
        return ""
    parties = dict.fromkeys(f"process {party.pid} on {party.host}" for party in holders)
    return f"; held by {', '.join(parties)}" if parties else ""


def _run(grant: ringhold.Grant, command: Command, inbox: Inbox, kill_after: float) -> int:
    """The command's exit code, or LOST."""
    lost = f"lock {grant.name!r} (token {grant.token}) was lost; stopping its command"
    grant.on_lost(lambda _: inbox.notify())
    command.start(grant.token)
    code = command.wait(inbox, kill_after, lambda: _say(lost))
    try:
        grant.release()
    except LockLost as error:
        if not command.stopped:
            _say(f"{error}; the command ended with {code}")
        return LOST
    except RingholdError as error:
        _say(f"giving back lock {grant.name!r}: {error}")
    return LOST if command.stopped else code


def main(arguments: Sequence[str]) -> int:
    """What the process exits with."""
    options, argv = _parse(arguments)
    command = Command(argv, options.name)
    mode = "shared" if options.shared else "exclusive"
    token: int | None = None
    code: int = options.conflict_exit_code
    try:
        inbox = Inbox()
        with _opened(options.cluster, options.session_ttl) as cluster:
            wait_s = -1 if options.timeout is None else options.timeout
            grant = cluster.lock(os.fsencode(options.name), mode=mode, timeout=wait_s).acquire()
            inbox.collect()
            if grant is not None:
                token = grant.token
                code = _run(grant, command, inbox, options.kill_after)
            elif not options.quiet:
                _say(
                    f"lock {options.name!r} was not granted within {wait_s:g} s"
                    f"{_held_by(cluster, options.name)}"
                )
    except Interrupted as interrupt:
        command.abandon()
        end_by(interrupt.number)
    except (RingholdError, OSError) as error:
        _say(str(error) or type(error).__name__)
        return exit_code(error)
    finally:
        command.abandon()
    if options.json:
        report = {"name": options.name, "mode": mode, "token": token, "code": code}
        print(json.dumps(report), file=sys.stderr)
    if code - SIGNALLED in command.received:
        end_by(code - SIGNALLED)
    return code
