"""The page for whoever stands in front of the box, and the page for its owner."""
