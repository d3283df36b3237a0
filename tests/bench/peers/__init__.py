"""The other proxies, a file each: configuration, version, command. See `base.py`."""
