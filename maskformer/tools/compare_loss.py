"""Compare the loss curves of two trainings: see ``maskformer.sdaa.compare_loss``."""

from maskformer.sdaa.compare_loss import main

if __name__ == "__main__":
    raise SystemExit(main())
