"""What feedback is for: masks to repair, candidates to select."""
