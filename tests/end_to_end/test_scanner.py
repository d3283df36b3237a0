"""A TLS scanner that was not written here looks at the real program: sslyze, for each profile.

It compares with Mozilla's own description of the profile: versions, ciphers, curves, certificates.
All that it may find is that nobody knows the authority of a test.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from end_to_end.kit import Starter, route
from end_to_end.secure import NAMES, Folder, tls_head

HOME = Path(__file__).resolve().parents[2] / ".tools" / "sslyze"
PYTHON = HOME / "venv" / "bin" / "python"
COMPARED = "Checking results against Mozilla's"

pytestmark = pytest.mark.skipif(
    not (HOME / "ready").exists(), reason="sslyze is not installed: python3 tools/set_up.py test"
)


def scan(port: int, profile: str, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """What it holds against the profile, and its results by name."""
    out = folder / "scan.json"
    done = subprocess.run(
        [
            PYTHON, "-W", "ignore", "-m", "sslyze", f"--mozilla_config={profile}", "--early_data",
            "--resum", f"--json_out={out}", f"127.0.0.1:{port}",
        ],
        capture_output=True, text=True, check=False, timeout=100,
    )
    assert COMPARED in done.stdout, done.stdout + done.stderr
    lines = done.stdout.partition(COMPARED)[2].splitlines()
    found = [line.strip().removeprefix("* ") for line in lines if line.startswith("        * ")]
    (server,) = json.loads(out.read_text())["server_scan_results"]
    assert server["scan_status"] == "COMPLETED"
    return found, {name: each["result"] for name, each in server["scan_result"].items()}


@pytest.mark.parametrize(
    ("profile", "kind"), [("intermediate", "ecdsa"), ("intermediate", "rsa"), ("modern", "ecdsa")]
)
def test_a_scanner_finds_what_the_profile_says(
    start: Starter, tmp_path: Path, profile: str, kind: str
) -> None:
    folder = Folder(tmp_path)
    folder.write("a", folder.authority.issue(*NAMES, subject="localhost", kind=kind))
    gateway = start(
        tls_head() + folder.listener("a", more=f'profile = "{profile}"')
        + route("echo", "builtin:echo")
    )
    found, results = scan(gateway.port, profile, tmp_path)
    assert [line.partition(":")[0] for line in found] == ["certificate_path_validation"], found
    for version in ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"):
        assert not results[f"{version}_cipher_suites"]["accepted_cipher_suites"]
    assert results["tls_1_3_cipher_suites"]["accepted_cipher_suites"]
    is_old = profile == "intermediate"
    assert bool(results["tls_1_2_cipher_suites"]["accepted_cipher_suites"]) == is_old
    assert not results["session_renegotiation"]["is_vulnerable_to_client_renegotiation_dos"]
    assert not results["tls_1_3_early_data"]["supports_early_data"]
    assert not results["heartbleed"]["is_vulnerable_to_heartbleed"]
    assert not results["tls_compression"]["supports_compression"]
    assert results["robot"]["robot_result"].startswith("NOT_VULNERABLE")
