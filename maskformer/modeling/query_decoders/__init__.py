"""Query decoders: from image features to the class and the mask of each query."""
