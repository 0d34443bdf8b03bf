"""Rapidata's rich human feedback, in parquet shards with the pictures inside → a prepared dataset."""
