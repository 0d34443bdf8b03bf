"""Boxes, polygons and masks of artifacts, as COCO files have them → a prepared dataset with partial labels."""
