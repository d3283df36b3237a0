"""The command line. It reads arguments, says what went wrong in plain sentences, and exits.

    gateway --routes PATH       serve
    gateway check PATH          is the table right, and what does it come to
    gateway explain PATH URL    which route takes this request, and why not the others
    gateway doctor              what this machine gives the gateway, and what is missing
    gateway certs [NAME]...     a CA and certificates for development

    gateway status | sessions | close | drain | reload      of a gateway that runs: commands.py

Exit codes: 0 all is well; 1 the table is refused, `doctor` misses what it demands, or a running
gateway says no; 2 wrong usage, or what was to be printed could not be written; 3 an address cannot
be bound; 4 sessions had to be cut; 5 the engine that the table demands cannot run; 6 no gateway
answers a command.

What serving needs is imported only when something is served: signals are heard from the first
line of `main` on, and loading takes longer than a container's patience may be.
"""

import contextlib
import errno
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from gateway import __version__
from gateway.control.certs_command import certs
from gateway.control.commands import COMMANDS
from gateway.errors import GatewayError

EXIT_USAGE = 2

# What writing to standard output fails with: no reader, or no room.
_UNWRITTEN = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


# Signals that a gateway does not end by, and what they did before `main`.
_HELD: dict[signal.Signals, Any] = {}


class _TablePath(click.Path):
    """A file or folder by its name. `Path("")` would be the folder where we happen to be."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        if value == "":
            self.fail("the name is empty; name a file, or a folder.", param, ctx)
        return super().convert(value, param, ctx)


TABLE = _TablePath(path_type=Path)
HELP = {"help_option_names": ["-h", "--help"]}
EPILOG = """\b
Exit codes:
  0  ended, and no session was cut
  1  the route table is refused; of doctor: something that it demands is missing;
     of reload, close: the gateway that was asked refuses
  2  wrong usage, or what was to be printed could not be written
  3  an address cannot be bound
  4  ended, and sessions had to be cut
  5  the engine that the table demands cannot run
  6  no gateway answers at the control socket

\b
Try it:
  gateway check routes/demo.toml
  gateway --routes routes/demo.toml
"""


@click.group(invoke_without_command=True, context_settings=HELP, epilog=EPILOG)
@click.option(
    "--routes",
    type=TABLE,
    metavar="PATH",
    help="The route table: a TOML file, or a folder whose *.toml files are read in order.",
)
@click.version_option(__version__, prog_name="gateway", message="%(prog)s %(version)s")
@click.pass_context
def command(context: click.Context, routes: Path | None) -> None:
    """An edge gateway for WebSockets.

    With --routes it serves what the route table says, until SIGTERM (sessions are told and may
    finish, for the table's `drain`) or SIGINT (sessions are told and cut). Access records go to
    standard output, everything else to standard error.
    """
    if context.invoked_subcommand is not None:
        for number, handler in _HELD.items():    # what only asks ends with its terminal
            signal.signal(number, handler)
        if routes is not None:
            raise click.UsageError(
                f"--routes is for serving; write: gateway {context.invoked_subcommand} PATH"
            )
        return
    if routes is None:
        raise click.UsageError("The route table is missing: gateway --routes PATH")
    from gateway.control.serving import serve  # noqa: PLC0415 - see the module's docstring

    context.exit(serve(routes))


@command.command(short_help="Check a route table, and print what it comes to.")
@click.argument("path", type=TABLE)
def check(path: Path) -> None:
    """Check the route table at PATH, and print it with all defaults filled in.

    Nothing is bound, resolved or connected: whether a table is right does not depend on the
    machine. What is right but looks like a slip is said on standard error.
    """
    from gateway.control import config  # noqa: PLC0415 - see the module's docstring

    table, warnings = config.check(path)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(config.render(table), nl=False)


@command.command(short_help="Say which route takes a request, and why not the others.")
@click.argument("path", type=TABLE)
@click.argument("url")
@click.option(
    "--header", "headers", multiple=True, metavar="NAME:VALUE",
    help="A field of the request; may be repeated.",
)
@click.option("--origin", metavar="ORIGIN", help="The Origin that a browser would send.")
@click.option(
    "--subprotocol", "subprotocols", multiple=True, metavar="NAME",
    help="A subprotocol that the client offers; may be repeated.",
)
def explain(
    path: Path,
    url: str,
    headers: tuple[str, ...],
    origin: str | None,
    subprotocols: tuple[str, ...],
) -> None:
    """Say which route of the table at PATH takes a request for URL, and why the others do not.

    URL is ws://host/path?query, or a path alone. Nothing is sent anywhere.
    """
    from gateway.control import config  # noqa: PLC0415 - see the module's docstring
    from gateway.control.explain import explain as explained  # noqa: PLC0415 - likewise

    table = config.load(path)
    try:
        text = explained(table, url, headers, origin, subprotocols)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(text, nl=False)


@command.command(short_help="Say what this machine gives the gateway, and what is missing.")
@click.option("--routes", type=TABLE, metavar="PATH", help="Ask for what this table demands, too.")
@click.pass_context
def doctor(context: click.Context, routes: Path | None) -> None:
    """Say what the gateway finds here: kernel, compiled parts, engines, limits.

    What is worth knowing is a note, with what would make it better. The exit code is 1 if
    something is missing that the table of --routes demands. Nothing is bound or changed.
    """
    from gateway.control import config  # noqa: PLC0415 - see the module's docstring
    from gateway.control.doctor import examine  # noqa: PLC0415 - likewise

    table = None if routes is None else config.load(routes)
    text, has_all = examine(table)
    click.echo(text, nl=False)
    context.exit(0 if has_all else 1)


for each in (certs, *COMMANDS):
    command.add_command(each)


def main() -> None:
    """The entry of the `gateway` command; always ends the process."""
    # Until the supervisor hears them: nobody who sends these means to end us.
    for number in (signal.SIGHUP, signal.SIGUSR2):
        _HELD[number] = signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    _fill_standard_descriptors()
    code = 0
    try:
        # Not by click's own `main`: what cannot be written ends there with 1, a refused table's.
        with command.make_context("gateway", sys.argv[1:]) as context:
            command.invoke(context)
    except click.exceptions.Exit as wanted:
        code = wanted.exit_code
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        code = error.exit_code
    except GatewayError as error:
        _complain(str(error))
        code = error.exit_code
    except OSError as error:
        if error.errno not in _UNWRITTEN or error.filename is not None:
            raise
        _forget_output()
        if error.errno != errno.EPIPE:  # who reads `... | head -1` has seen enough
            _complain(f"cannot write to standard output: {(error.strerror or '').lower()}")
        code = EXIT_USAGE
    sys.exit(code)


def _complain(text: str) -> None:
    """Say it on standard error, if anybody takes it; the exit code tells all the same."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _forget_output() -> None:
    """What is left in the buffer would be tried again at the end, with a traceback."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """Before anything is served a signal simply ends us: nobody loses anything."""
    sys.exit(0)


def _fill_standard_descriptors() -> None:
    """Where we were started without 0, 1 or 2, a socket would get that number, and whatever is
    printed would go to a client."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free: this one
            # PEP 446: else our workers and successors would start without it once more.
            os.set_inheritable(descriptor, True)
