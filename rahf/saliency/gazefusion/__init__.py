"""GazeFusion: pictures that draw the eye where one wants it, by a ControlNet that reads saliency maps."""
