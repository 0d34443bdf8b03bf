"""Damage with exactly known places planted on anybody's pictures, rated by simulated annotators.

`prepare.prepare` writes a dataset; `damage.plant` damages one picture; `wording` makes prompts untrue.
"""
