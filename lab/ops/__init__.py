"""The operators' public functional forms: `lab.ops.rmsnorm(x, weight, eps=1e-6, *, backend=None)` and so on.

Every module here that defines OPERATOR is an operator: its contract is registered, and its function of the same name
becomes an attribute of this package.
"""

import importlib
import pkgutil

from lab.backends.registry import register_operator

__all__ = []
for _module in pkgutil.iter_modules(__path__):
    _loaded = importlib.import_module(f"{__name__}.{_module.name}")
    if hasattr(_loaded, "OPERATOR"):
        register_operator(_loaded.OPERATOR)
        globals()[_module.name] = getattr(_loaded, _module.name)
        __all__.append(_module.name)
