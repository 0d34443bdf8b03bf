"""What a generator learns from where to draw the eye: square crops, their saliency maps, their captions."""
