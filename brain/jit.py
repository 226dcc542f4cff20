"""How kernels are compiled: `entry` when Python calls them, `step` when only kernels do.

A step has no Python wrapper and no cache file of its own: its code lives in the entries that call
it. That halves compile time, and it means that numba does not notice a changed step: the cache
folder must be keyed by `code_hash` of state.py (NUMBA_CACHE_DIR, set before numba is imported).

Nothing here allocates, so nothing counts references (`_nrt=False`): an atomic increment and
decrement for each view of a row cost half of a close. An allocation in a kernel does not compile.

`inlined` is for what takes the whole state on the way to a close: handing its fourteen arrays to a
function costs more than the indicators do.
"""

from __future__ import annotations

from typing import Any, Final

from numba import njit

# "numpy": a division has no branch that raises; whoever divides looks at the divisor first.
KERNEL: Final[dict[str, Any]] = {"nogil": True, "error_model": "numpy", "_nrt": False}
_ALONE: Final[dict[str, Any]] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
entry = njit(cache=True, **KERNEL)
step = njit(**KERNEL, **_ALONE)
inlined = njit(inline="always", **KERNEL, **_ALONE)
