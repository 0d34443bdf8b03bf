"""Where people look: a network over any tower, its training, and the trained model."""
