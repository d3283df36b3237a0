"""`python -m tests.ktls [arguments of pytest]`: the tests of kTLS, in a virtual machine.

It takes `qemu-system-x86`, and Debian's cloud kernel, which is fetched once; two minutes where the
processor helps (KVM), a few more where it is emulated. Without arguments: all of `tests/ktls`.
"""

import os
import subprocess
import sys
import tempfile
import urllib.parse
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ktls import initramfs, kernel
from ktls.guest import DONE

QEMU = "qemu-system-x86_64"
SECONDS = 1200              # for everything: a machine that hangs is ended
MEMORY = 2048               # MiB


def accelerator() -> list[str]:
    """KVM where it is the processor's own. (One without, `kvm_pvm`, runs only kernels that know
    it; others hang there.)"""
    by_processor = any(Path("/sys/module", name).is_dir() for name in ("kvm_intel", "kvm_amd"))
    if by_processor and os.access("/dev/kvm", os.R_OK | os.W_OK):
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", "tcg,thread=multi", "-cpu", "max"]


def boot(command: list[str]) -> int:
    """Run Python there with these arguments, show the console; the code that it ended with."""
    asked = urllib.parse.quote("\0".join(command))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "initramfs")
        initramfs.write(root)
        machine = subprocess.Popen(
            [QEMU, *accelerator(), "-smp", "2", "-m", str(MEMORY), "-nodefaults", "-no-reboot",
             "-display", "none", "-serial", "stdio", "-kernel", kernel.image(), "-initrd", root,
             "-append", f"console=ttyS0 quiet panic=-1 random.trust_cpu=on ktls={asked}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace",
        )
        code = 1
        with machine:
            try:
                os.set_blocking(machine.stdout.fileno(), True)  # type: ignore[union-attr]
                for line in machine.stdout or ():
                    if line.startswith(DONE):
                        code = int(line.split()[-1])
                    else:
                        print(line, end="", flush=True)
                machine.wait(SECONDS)
            finally:
                machine.kill()
    return code


def main() -> None:
    """The exit code is pytest's; 1 where the machine did not come so far."""
    arguments = sys.argv[1:] or ["tests/ktls"]
    sys.exit(boot(["-m", "pytest", "-p", "no:cacheprovider", *arguments]))


if __name__ == "__main__":
    main()
