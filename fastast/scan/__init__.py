"""Which files there are, and from their first bytes what they are; nothing is decoded."""
