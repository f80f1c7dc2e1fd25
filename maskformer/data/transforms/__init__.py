"""What happens to a training image: augmentations, and the transforms that they draw."""
