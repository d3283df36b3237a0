"""Where the kernel has no TLS for sockets these are skipped; in the machine of `make ktls` they are
not: there it is a failure."""

import os

import pytest

from gateway.engine import ktls


@pytest.fixture(autouse=True)
def _kernel_tls() -> None:
    missing = ktls.support().missing
    if missing and "KTLS_MACHINE" not in os.environ:
        pytest.skip(missing)
    assert not missing, missing
