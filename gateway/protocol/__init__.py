"""Protocol: bytes and events in, bytes and commands out. No sockets, clocks, files or loggers."""
