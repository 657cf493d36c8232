"""What one would write in NumPy, in the dtype of the data."""

import numpy as np


def secant_fit(s: np.ndarray, y: np.ndarray, extrapolate: float = 2 / 3) -> tuple:
    """The operator of `lowrank_jax.fit` for independent pairs, by a tall QR.

    `S = R^T Q` gives `Z = R^-T Y`. The inverse of the small R and a product take a tenth of
    the time of `np.linalg.solve`, which copies Y.

    Args:
      s: steps, (n, D) or a stack of such.
      y: gradient differences, of the same shape.
      extrapolate: as in `lowrank_jax.fit`.

    Returns:
      Factors B (..., 2n, D) and core K (..., 2n, 2n) of `H = B^T K B`.
    """
    columns, r = np.linalg.qr(_transposed(s))
    q, z = _transposed(columns), _transposed(np.linalg.inv(r)) @ y
    a = z @ columns
    m = (a + _transposed(a)) / 2
    eye = np.broadcast_to(np.eye(s.shape[-2], dtype=s.dtype), m.shape)
    core = np.block([[m, eye], [eye, _damped_inverse(a, m, z, extrapolate)]])
    return np.concatenate([q, z - a @ q], axis=-2), core


def _damped_inverse(a: np.ndarray, m: np.ndarray, z: np.ndarray, e: float) -> np.ndarray:
    """`e Re (e M + i W)^-1`, the W of `lowrank_jax.fit` but for what only rounding needs."""
    r, dtype, eps = m.shape[-1], m.dtype, np.finfo(m.dtype).eps
    k = z @ _transposed(z)
    square = np.trace(k, axis1=-2, axis2=-1)
    inverse = np.linalg.inv(k + eps * square[..., None, None] * np.eye(r, dtype=dtype))
    share = (np.sum(m * m, axis=(-2, -1)) / square + r**-2.0) / (1 + r**-2.0)
    d = 1.2 * (1 - e) * np.sqrt(r * share / np.trace(inverse, axis1=-2, axis2=-1) / square)
    u_squared = 0.2**2 * np.sum((a - m) ** 2, axis=(-2, -1)) / square / r
    f_squared = e**2 * (eps + u_squared)
    floor = e * f_squared / (d**2 + f_squared) * u_squared / np.sqrt(eps + u_squared)
    width = (np.sqrt(square) * (eps + d + floor))[..., None, None]
    damped = np.linalg.inv(e * m + 1j * width.astype(dtype) * np.eye(r, dtype=dtype))
    return (e * damped.real).astype(dtype)


def eigenproblem_fit(x: np.ndarray, y: np.ndarray) -> tuple:
    """The low-rank Hessian of one cloud by the eigenvalue problem in the coordinates of [X Y].

    G is an orthonormal basis of the columns of X and Y, X' = G^T X, Y' = G^T Y, and
    `J = Y' Y'^T = U S U^T`, of rank n. An eigenvector `u = G U a` of H with eigenvalue s satisfies
    `a / s = S^+ U^T Y' X'^T U a`, which is not symmetric.

    Args:
      x: steps, (D, n).
      y: gradient differences, (D, n), `y = H x` with H of rank n at least.

    Returns:
      Eigenvalues s (n,) and eigenvectors (D, n).
    """
    n = x.shape[1]
    g, _ = np.linalg.qr(np.concatenate([x, y], axis=1))
    x_hat, y_hat = g.T @ x, g.T @ y
    u, s, _ = np.linalg.svd(y_hat @ y_hat.T)
    u, s = u[:, :n], s[:n]
    pseudo_inverse = np.where(s > 0, 1 / np.where(s > 0, s, 1), 0)
    inverse_values, a = np.linalg.eig(pseudo_inverse[:, None] * (u.T @ y_hat @ x_hat.T @ u))
    vectors = np.real(g @ (u @ a))
    return 1 / np.real(inverse_values), vectors / np.linalg.norm(vectors, axis=0)


def _transposed(a: np.ndarray) -> np.ndarray:
    return np.swapaxes(a, -1, -2)
