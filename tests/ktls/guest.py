"""The first program of the virtual machine: make it a Linux, run what was asked for, power off.

What to run stands on the kernel's command line behind `ktls=`, URL-quoted. The last line on the
console says how that ended.
"""

import ctypes
import os
import socket
import struct
import subprocess
import sys
import urllib.parse
from pathlib import Path

DONE = "ktls: ended with"
MOUNTS = (
    ("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp"), ("tmpfs", "/run")
)
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
RB_POWER_OFF = 0x4321FEDC
SYS_FINIT_MODULE = 313      # of x86-64


def main() -> None:
    """Never returns: without its first program the kernel panics."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = 1
    try:
        for kind, place in MOUNTS:
            if libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None):
                print(f"not mounted: {place}: {os.strerror(ctypes.get_errno())}")
        for module in sorted(Path("/modules").iterdir()):
            with module.open("rb") as file:
                if libc.syscall(SYS_FINIT_MODULE, file.fileno(), b"", 0):
                    print(f"not loaded: {module.name}: {os.strerror(ctypes.get_errno())}")
        bring_up("lo")
        asked = Path("/proc/cmdline").read_text().split("ktls=", maxsplit=1)[1].split()[0]
        command = urllib.parse.unquote(asked).split("\0")
        code = subprocess.run([sys.executable, *command], check=False).returncode
    finally:
        print(f"\n{DONE} {code}", flush=True)
        os.sync()
        libc.reboot(RB_POWER_OFF)


def bring_up(name: str) -> None:
    """The network interface, which has its addresses by itself: it is the loopback."""
    import fcntl  # noqa: PLC0415 - of Linux; this file is imported for DONE elsewhere

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", name.encode(), IFF_UP))


if __name__ == "__main__":
    main()
