"""TLS in the kernel, tried in a virtual machine: `make ktls`."""
