"""A user's own feedback: a JSONL file and a folder of pictures → a prepared dataset (`rahf prepare feedback`).

`lines` reads the file, `folder` the pictures. `opinions` checks the annotations of one picture, `labels` consolidates
them. `splits` assigns prompts to splits. `prepare` writes the dataset and counts what was refused.
"""
