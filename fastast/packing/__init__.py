"""Tar shards of pictures with an index: planning, converting, writing, verifying."""
