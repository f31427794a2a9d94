"""Compaction: smaller models, and what can be done with them."""
