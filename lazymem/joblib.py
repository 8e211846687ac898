# SPDX-License-Identifier: BSD-3-Clause
"""A hook for joblib: what libraries make of a lazy array goes to workers by reference.

joblib asks a LazyArray itself how it is pickled.  But scikit-learn, and others, pass on
``np.asarray(a)``; an ordinary ndarray of more than a megabyte joblib dumps to a
temporary file, which reads all of it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from lazymem import reference
from lazymem.array import find_part
from lazymem.extras import needs

if TYPE_CHECKING:
    from collections.abc import Callable

    import joblib


def by_reference(**options: Any) -> joblib.parallel_config:
    """Have joblib's workers given references to lazy arrays, whatever wraps them.

    Parameters
    ----------
    **options
        As for `joblib.parallel_config`, whose backend is ``"loky"``.

    Returns
    -------
    joblib.parallel_config
        A context manager.

    Raises
    ------
    ImportError
        If joblib is missing.

    Notes
    -----
    Workers get a LazyArray where the caller had an ordinary array over one's memory.
    All other arrays go as joblib sends them.

    Examples
    --------
    >>> import joblib, numpy as np, lazymem as lm, lazymem.joblib
    >>> _ = lm.save("x.lzm", {"x": np.eye(1000)})
    >>> with lm.open("x.lzm") as store, lazymem.joblib.by_reference(n_jobs=2):
    ...     x = np.asarray(store["x"])
    ...     print(*joblib.Parallel()(joblib.delayed(np.trace)(x) for _ in range(2)))
    1000.0 1000.0
    """
    with needs("joblib"):
        import joblib
        from joblib.parallel import LokyBackend

    class Backend(LokyBackend):  # type: ignore[misc]
        def configure(self, *args: Any, **kwargs: Any) -> Any:
            return super().configure(*args, forward_reducers=_Reducers(), **kwargs)

    return joblib.parallel_config(Backend(), **options)


class _Reducers(dict[type, "Callable[..., Any]"]):
    """Puts itself before the reducers that joblib sets.

    All are equal: joblib goes on with the workers it has where nothing has changed.
    """

    def __setitem__(self, kind: type, reduce: Callable[..., Any]) -> None:
        super().__setitem__(kind, partial(_reduce, reduce))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reducers)

    __hash__ = None

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


def _reduce(otherwise: Callable[..., Any], array: Any) -> Any:
    found = find_part(array)
    return reference.reduce(*found) if found else otherwise(array)
