"""Files from anywhere, read with limits: images, JSON, masks of annotated instances."""
