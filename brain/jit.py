"""How kernels are compiled: `entry` when Python calls them, `step` when only kernels do.

A step has no Python wrapper and no cache file of its own: its code lives in the entries that call
it. That halves compile time, and it means that numba does not notice a changed step: the cache
folder must be keyed by `code_hash` of state.py (NUMBA_CACHE_DIR, set before numba is imported).

`inlined` is for what takes the whole state on the way to a close: handing its fourteen arrays to a
function costs more than the indicators do.
"""

from __future__ import annotations

from numba import njit

# "numpy": a division has no branch that raises; whoever divides looks at the divisor first.
entry = njit(nogil=True, cache=True, error_model="numpy")
step = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
inlined = njit(
    nogil=True,
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
    error_model="numpy",
    inline="always",
)
