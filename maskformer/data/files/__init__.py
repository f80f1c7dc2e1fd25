"""Files of strangers, read with their limits: images, JSON, COCO annotations and run lengths."""
