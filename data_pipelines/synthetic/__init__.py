"""Procedurally drawn scenes with planted faults, exact labels and simulated annotators.

`scene.generate` yields records, `prepare.prepare` writes a dataset, `sheet.contact_sheet` draws scenes and labels.
"""
