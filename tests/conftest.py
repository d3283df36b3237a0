"""Shared by all tests: nothing yet but the pytest root."""
