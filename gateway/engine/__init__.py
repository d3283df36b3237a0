"""Transport: the only folder that touches a socket. It knows no protocol; see `contract.py`."""
