"""Outputs of other programs → a predictions file. One module per program; its docstring describes their layout."""
