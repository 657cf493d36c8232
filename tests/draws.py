"""Random problems that several tests draw from."""

import numpy as np


def symmetric(rng, dim, rank=None):
    """A generic indefinite symmetric matrix, of that rank."""
    if rank is None:
        a = rng.normal(size=(dim, dim))
        return (a + a.T) / np.sqrt(dim)
    u = np.linalg.qr(rng.normal(size=(dim, rank)))[0]
    w = rng.choice([-1.0, 1.0], size=rank) * rng.uniform(1, 3, size=rank)
    return (u * w) @ u.T


def steps_of_condition(rng, n, dim, cond, spectrum):
    """n steps whose singular values, min(n, dim) of them, run from 1 to 1 / cond."""
    rank = min(n, dim)
    u = np.linalg.qr(rng.normal(size=(n, rank)))[0]
    v = np.linalg.qr(rng.normal(size=(dim, rank)))[0]
    values = {
        "geometric": np.geomspace(1, 1 / cond, rank),
        "clustered": np.where(np.arange(rank) < rank // 2, 1, 1 / cond),
        "one small": np.where(np.arange(rank) < rank - 1, 1, 1 / cond),
    }[spectrum]
    return (u * values) @ v.T


def chain_laplacian(dim=12):
    """The second-difference matrix: 2 on the diagonal, -1 beside it."""
    return 2 * np.eye(dim) - np.eye(dim, k=1) - np.eye(dim, k=-1)


def dependent(rng, kind, n=5, dim=9, cond=3.0):
    """Steps that are linearly dependent in one of five ways, and their rank."""
    if kind == "more than D":
        return steps_of_condition(rng, dim + 4, dim, cond, "geometric"), dim
    s = steps_of_condition(rng, n, dim, cond, "geometric")
    if kind == "zero":
        s[[0, 3]] = 0
        return s, n - 2
    s[4] = {
        "duplicate": s[1],
        "scaled duplicate": -1e3 * s[1],
        "combination": rng.normal(size=3) @ s[:3],
    }[kind]
    return s, n - 1


DEPENDENT = ("duplicate", "scaled duplicate", "combination", "zero", "more than D")
