from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# What a training script of Detectron2 imports; then what importing maskformer adds.
PROGRAM = """
import sys
import detectron2.checkpoint, detectron2.config, detectron2.data, detectron2.engine
import detectron2.evaluation, detectron2.modeling
before = set(sys.modules)
import maskformer
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
print(*sorted(name for name in sys.modules if name.startswith(("maskformer.tools", "maskformer.data.datasets.prep"))))
print(*(name for name in ("MaskFormer", "SemanticSegmentor") if name in maskformer.meta_arch.META_ARCH_REGISTRY))
"""


def test_importing_loads_nothing_that_detectron2_has_not_loaded_but_the_package_itself():
    words = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    result = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    third_party, tools, registered = result.stdout.splitlines()
    # No SciPy, which took 0.4 s; panopticapi is two small files, 4 ms.
    assert set(third_party.split()) <= {"detectron2", "maskformer", "panopticapi"}
    assert tools == ""
    assert registered == "MaskFormer SemanticSegmentor"
