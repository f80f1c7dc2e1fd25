"""``SOLVER.DETERMINISTIC``: what PyTorch cannot compute deterministically is named, not hidden."""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any

from detectron2.engine import HookBase

logger = logging.getLogger(__name__)

# How PyTorch begins the warnings of `use_deterministic_algorithms(warn_only=True)`: with the name of the operation.
_WARNING = r".*(?:does not have a deterministic implementation|deterministic behavior|(?:not |non-)deterministic)"
_OPERATION = re.compile(r"(.+?)(?= defaults to )|(\w+)")


class DeterminismReport(HookBase):
    """Names in the log each operation that is not deterministic on the device, once, and all of them at the end."""

    def __init__(self) -> None:
        self.operations: set[str] = set()
        self._catching = warnings.catch_warnings()

    def before_train(self) -> None:
        """Listen to PyTorch's warnings, also where they are silenced."""
        self._catching.__enter__()
        warnings.filterwarnings("always", message=_WARNING, category=UserWarning)
        self._show = warnings.showwarning
        warnings.showwarning = self._note

    def after_train(self) -> None:
        """List them."""
        self._catching.__exit__(None, None, None)
        found = ", ".join(sorted(self.operations)) or "none that PyTorch knows of"
        logger.info("SOLVER.DETERMINISTIC: operations that were not deterministic: %s", found)

    def _note(self, message: Any, category: type[Warning], *place: Any, **options: Any) -> None:
        if not re.match(_WARNING, str(message)):
            self._show(message, category, *place, **options)
            return
        match = _OPERATION.search(str(message))
        operation = match[0] if match else str(message)
        if operation not in self.operations:
            self.operations.add(operation)
            logger.warning("Not deterministic on this device: %s", operation)
