"""`rahf report`: models on a data set, or generators under a model, as one HTML file without any request."""
