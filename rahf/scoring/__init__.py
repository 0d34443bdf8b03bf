"""Scores of very many pictures: blocks that are done or not, in one process or on a cluster."""
