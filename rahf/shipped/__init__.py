"""Trained models of the package, as exported files: `rahf.load("lite")` and every command take their names."""
