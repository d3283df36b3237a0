"""The commands that are for a gateway that runs: status, sessions, close, drain, reload.

They find it by its control socket. What they print is for people; `--json` prints the answer
itself, whose words are in docs/control.md. What talks to the socket is imported only when a command
is run: whoever serves needs none of it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Answer = dict[str, Any]

EXIT_REFUSED = 1
EXIT_CUT = 4

CONTROL = click.option(
    "--control", type=click.Path(path_type=Path), metavar="PATH",
    help="The gateway's control socket; without it the usual places are tried.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")


@click.command(short_help="Say how a running gateway is.")
@CONTROL
@JSON
def status(control: Path | None, as_json: bool) -> None:
    """Say how a running gateway is: its workers, its routes, its latest reload."""
    from gateway.control import control_client  # noqa: PLC0415 - see the module's docstring

    with control_client.Line(control) as line:
        _show(line.ask(do="status"), as_json, control_client.status_text)


@click.command(short_help="List live sessions of a running gateway.")
@click.option("--route", default="", metavar="NAME", help="Of this route alone.")
@click.option(
    "--limit", default=100, type=click.IntRange(1, 10_000), show_default=True,
    help="At most so many, the oldest.",
)
@CONTROL
@JSON
def sessions(route: str, limit: int, control: Path | None, as_json: bool) -> None:
    """List live sessions of a running gateway, the oldest first."""
    from gateway.control import control_client  # noqa: PLC0415 - see the module's docstring

    with control_client.Line(control) as line:
        answer = line.ask(do="sessions", route=route, limit=limit)
        _show(answer, as_json, control_client.sessions_text)


@click.command(short_help="End one session of a running gateway.")
@click.argument("session", metavar="ID")
@click.option("--code", default=1000, show_default=True, help="The close code for the client.")
@click.option("--reason", default="", help="The reason beside it, at most 123 bytes.")
@CONTROL
@JSON
def close(
    session: str, code: int, reason: str, control: Path | None, as_json: bool
) -> None:
    """End the session ID, which `gateway sessions` and the access records name.

    The client is told the close code between two frames, the upstream 1001.
    """
    from gateway.control import control_client  # noqa: PLC0415 - see the module's docstring

    _check_code(code, reason)
    with control_client.Line(control) as line:
        answer = line.ask(do="close", session=session, code=code, reason=reason)
        _show(answer, as_json, lambda _: f"{session} is told {code}\n")


@click.command(short_help="Have a running gateway end, gently.")
@click.option("--wait", is_flag=True, help="Wait until it has ended; exit code 4 if it cut any.")
@CONTROL
@JSON
def drain(wait: bool, control: Path | None, as_json: bool) -> None:
    """Have a running gateway end as by SIGTERM: it accepts nothing more, sessions are told, and
    may finish within the table's `drain`."""
    from gateway.control import control_client  # noqa: PLC0415 - see the module's docstring

    with control_client.Line(control) as line:
        answer = line.ask(do="drain", wait=wait)
        if wait and answer["is"] != "error":
            answer = line.wait(seconds=None)
        _show(answer, as_json, control_client.drain_text)
    if answer.get("cut"):
        click.get_current_context().exit(EXIT_CUT)


@click.command(short_help="Have a running gateway read its table again.")
@click.option("--plan", is_flag=True, help="Only say what would change, and for how many sessions.")
@CONTROL
@JSON
def reload(plan: bool, control: Path | None, as_json: bool) -> None:
    """Have a running gateway read its table again, and go by it: in full, or not at all.

    A table with a mistake changes nothing; the mistakes are printed, and the exit code is 1.
    """
    from gateway.control import control_client  # noqa: PLC0415 - see the module's docstring

    with control_client.Line(control) as line:
        answer = line.ask(do="reload", plan=plan)
        _show(answer, as_json, control_client.plan_text)
    if answer.get("refusals"):
        click.get_current_context().exit(EXIT_REFUSED)


COMMANDS = (status, sessions, close, drain, reload)


def _show(answer: Answer, as_json: bool, in_words: Callable[[Answer], str]) -> None:
    """Print an answer; an error goes to standard error and ends the command with 1."""
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    elif answer["is"] == "error":
        click.echo(answer["error"], err=True)
    else:
        click.echo(in_words(answer), nl=False)
    if answer["is"] == "error":
        click.get_current_context().exit(EXIT_REFUSED)


def _check_code(code: int, reason: str) -> None:
    """Refuse here what the gateway would: usage is 2, whoever runs."""
    from gateway.control.config_values import close_code, close_reason  # noqa: PLC0415 - likewise
    from gateway.errors import TableError  # noqa: PLC0415 - likewise

    try:
        close_code(code, "--code")
        close_reason(reason, "--reason")
    except TableError as error:
        raise click.UsageError(str(error)) from error
