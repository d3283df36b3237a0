class SecureLeg:
    """The TLS of one link, as it is handed to compiled relays."""

    def hand_over(self, unsent: bytes, owed: int) -> SecureLeg:
        """Before a relay takes it: what is sealed and not sent, and how many clear bytes of that
        stand at the front of what is queued all the same."""
