"""Offline data jobs: packing, tokenizing, and looking at what came out.

People's own sources import `RawSample` and the like from here, so modules that moved are still
found under the names that they had in mgpt 0.1, with a warning that names the new one.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_MOVED = {
    "data_pipeline.raw_shards": "data_pipeline.raw.shards",
    "data_pipeline.pack_config": "data_pipeline.sources.pack_config",
    "data_pipeline.record_files": "data_pipeline.sources.record_files",
}


class _MovedModules(MetaPathFinder, Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in _MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        moved_to = _MOVED[module.__name__]
        warnings.warn(f"{module.__name__} is {moved_to} now", FutureWarning, stacklevel=2)
        names = vars(import_module(moved_to)).items()
        vars(module).update((name, value) for name, value in names if not name.startswith("__"))


sys.meta_path.append(_MovedModules())
