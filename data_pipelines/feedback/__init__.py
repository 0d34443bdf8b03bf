"""A user's own feedback: a JSONL file and a folder of pictures → a prepared dataset (`rahf prepare feedback`).

`lines` reads the file, `folder` the pictures, `opinions` checks what people said of one picture, `labels` makes
labels of it, `splits` decides what is tested on, and `prepare` writes the dataset and keeps account.
"""
