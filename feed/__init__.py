"""Exchange bytes to ring: decoder, firewall, continuity, history. Knows no Redis and no brain."""
