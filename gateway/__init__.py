"""A WebSocket edge gateway: protocol and transport apart, and frames walked at relay speed."""

__version__ = "0.1.0"
