"""`gateway certs`: a development CA, and certificates of it, in a folder."""

from pathlib import Path

import click

LOCAL = ("localhost", "127.0.0.1", "::1")


@click.command(short_help="Make a CA and certificates for development.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("certs"),
    show_default=True, metavar="FOLDER", help="Where they are written.",
)
@click.option(
    "--days", type=click.IntRange(1, 825), default=90, show_default=True,
    help="How long the server's and the client's are good.",
)
def certs(names: tuple[str, ...], out: Path, days: int) -> None:
    """Make a CA for development, a server's certificate for the names, and a client's.

    Without a name it is for localhost, 127.0.0.1 and ::1. A CA that this command has made before is
    used on, the others are made anew. Never for production: who trusts this CA trusts whoever can
    read ca.key.
    """
    from gateway.control import dev_certificates  # noqa: PLC0415 - see the module's docstring

    try:
        made = dev_certificates.make(out, names or LOCAL, days)
    except OSError as error:
        raise click.UsageError(f"{out}: {error.strerror or error}") from error
    for file in made:
        click.echo(str(file))
    click.echo(
        f"\nA client that trusts {out / 'ca.crt'} takes the server's, such as\n"
        f"  curl --cacert {out / 'ca.crt'} https://{(names or LOCAL)[0]}:8443/\n"
        "A listener of a table in the folder above has it by\n"
        f'  tls = {{ certificates = [{{ chain = "{out.name}/server.crt", '
        f'key = "{out.name}/server.key" }}] }}'
    )
