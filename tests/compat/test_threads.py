"""How many threads the package may take."""

from threadpoolctl import threadpool_limits

from skdice._compat.threads import available_threads


def test_threads_follow_the_limits_of_the_blas():
    at_most = available_threads()
    assert at_most >= 1
    with threadpool_limits(1):
        assert available_threads() == 1
    with threadpool_limits(1, "blas"):
        assert available_threads() == 1
    assert available_threads() == at_most
