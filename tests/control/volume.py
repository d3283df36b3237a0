"""A ConfigMap's volume, as the kubelet lays it out and changes it."""

from collections.abc import Callable
from pathlib import Path


def config_map(folder: Path, text: str) -> Callable[[str], None]:
    """`routes.toml` with this text; returns what gives it another one at one stroke.

    The file is a link into `..data`, which is a link to a folder that never changes; another one is
    put in its place by rename.
    """
    count = 0

    def write(text: str) -> None:
        nonlocal count
        count += 1
        version = folder / f"..version_{count}"
        version.mkdir()
        (version / "routes.toml").write_text(text)
        (folder / "..data_tmp").symlink_to(version.name)
        (folder / "..data_tmp").rename(folder / "..data")

    write(text)
    (folder / "routes.toml").symlink_to("..data/routes.toml")
    return write
