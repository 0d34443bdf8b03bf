"""Where people look: fixations of eye-tracking studies, or ready maps, as a dataset."""
