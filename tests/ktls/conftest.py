"""Where the kernel has no TLS for sockets these are skipped; in the machine of `make ktls` they are
not: there it is a failure."""

import os

import pytest

from end_to_end import kit
from gateway.engine import ktls

kit.START_LIMIT = 300.0         # where the processor is emulated, imports take their time


@pytest.fixture(autouse=True)
def _kernel_tls() -> None:
    missing = ktls.support().missing
    if missing and "KTLS_MACHINE" not in os.environ:
        pytest.skip(missing)
    assert not missing, missing
