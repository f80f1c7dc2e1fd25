"""A killed evaluation goes on at the next image: each image's part of a score, in a journal."""
