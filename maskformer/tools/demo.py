"""Train a MaskFormer on the built-in dataset, measure it and draw its results: see ``maskformer.demo``."""

from maskformer.demo.demo import main

if __name__ == "__main__":
    raise SystemExit(main())
