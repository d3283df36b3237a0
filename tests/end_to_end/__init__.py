"""The real program, on real sockets, with clients and upstreams that know nothing of its code.

`wire.py` holds the bytes and sockets of both ends, `kit.py` the gateway as a process. No test
here imports `gateway`: what is true of it must be visible from outside.
"""
