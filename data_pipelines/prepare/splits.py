"""Names of the splits of data that people labelled."""

SPLITS = ("train", "dev", "test")
#: What occurs in two splits stays in the first of these, so that nothing of the test split is trained on.
PRECEDENCE = ("test", "dev", "train")
