"""How kernels are compiled: `entry` when Python calls them, `step` when only kernels do.

A step has no Python wrapper and no cache file of its own: its code lives in the entries that call
it. That halves compile time, and it means that numba does not notice a changed step: the cache
folder must be keyed by `code_hash` of state.py (NUMBA_CACHE_DIR, set before numba is imported).
"""

from __future__ import annotations

from numba import njit

entry = njit(nogil=True, cache=True)
step = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
