"""Slow dense twins in NumPy float64: the truth that the library is held against.

Nothing here knows the library. Rows are vectors: `S` (n, D) steps, `Y` (n, D)
gradient differences, `Y ~ S H`.
"""

import numpy as np


def symmetric_basis(dim):
    """An orthonormal basis of the symmetric (dim, dim) matrices in the Frobenius inner product."""
    basis = []
    for i in range(dim):
        for j in range(i + 1):
            e = np.zeros((dim, dim))
            e[i, j] = e[j, i] = 1.0 if i == j else np.sqrt(0.5)
            basis.append(e)
    return np.array(basis)


def least_norm_solution(s, y):
    """The symmetric H of least Frobenius norm among those that minimise |S H - Y|_F."""
    basis = symmetric_basis(s.shape[1])
    columns = np.einsum("ni,bij->njb", s, basis).reshape(-1, len(basis))
    coordinates = np.linalg.lstsq(columns, y.ravel(), rcond=1e-12)[0]
    return np.tensordot(coordinates, basis, 1)


def gram_schmidt_eigenproblem(x, y):
    """The low-rank Hessian by the eigenvalue problem in the coordinates of [X Y].

    G is an orthonormal basis of all x and y, X' = G^T X, Y' = G^T Y (2n, n), and
    J = Y' Y'^T = U S U^T has rank n. An eigenvector u = G U_n a of H with
    eigenvalue s satisfies a / s = S_n^-1 U_n^T Y' X'^T U_n a: a nonsymmetric problem.
    It needs n independent pairs, 2n <= D, and a Hessian of rank n at least.
    """
    g, _ = np.linalg.qr(np.concatenate([x, y]).T)
    x_hat, y_hat = g.T @ x.T, g.T @ y.T
    u, s, _ = np.linalg.svd(y_hat @ y_hat.T)
    n = len(x)
    u, s = u[:, :n], s[:n]
    inverse_values, a = np.linalg.eig(u.T @ y_hat @ x_hat.T @ u / s[:, None])
    vectors = g @ u @ a
    vectors = np.real(vectors / np.linalg.norm(vectors, axis=0))
    return vectors @ np.diag(1 / np.real(inverse_values)) @ vectors.T


def unit_pairs(s, y):
    """Both scaled to steps of norm 1; zero steps and their differences become zero."""
    length = np.linalg.norm(s, axis=1, keepdims=True)
    inverse = np.divide(1, length, out=np.zeros_like(length), where=length > 0)
    return s * inverse, y * inverse


def whitened(s, y, rank):
    """An orthonormal basis Q of the steps' span and the least-squares Z ~ Q H."""
    unit, slopes = unit_pairs(s, y)
    q = np.linalg.svd(unit, full_matrices=False)[2][:rank]
    return q, np.linalg.lstsq(unit @ q.T, slopes, rcond=None)[0]


def fit(s, y, extrapolate, *, rank=None, eps=2.0**-52):
    """The dense H_r: [Q; P]^T [[M, I], [I, C]] [Q; P], C as in `outside`."""
    s, y = np.asarray(s, float), np.asarray(y, float)
    rank = np.linalg.matrix_rank(s) if rank is None else rank
    q, z = whitened(s, y, rank)
    a = z @ q.T
    m, p = (a + a.T) / 2, z - a @ q
    c = outside(a, z, extrapolate, eps)
    return q.T @ m @ q + q.T @ p + p.T @ q + p.T @ c @ p


def outside(a, z, extrapolate, eps):
    """C = e X for the solution of [[W, e M], [e M, -W]] [X; X'] = [0; I], a real twin."""
    m = (a + a.T) / 2
    eye = np.eye(len(m), dtype=m.dtype)
    w, curved = width(a, z, extrapolate, eps), extrapolate * m
    block = np.block([[w, curved], [curved, -w]]).astype(m.dtype)
    c = extrapolate * np.linalg.solve(block, np.concatenate([0 * eye, eye], axis=-2))[: len(m)]
    return (c + c.T) / 2


def width(a, z, extrapolate, eps):
    """W = d I + e f^2 / (d^2 + f^2) F, in units of |Z|, and K = Z Z^T / |Z|^2.

    h^2 is the harmonic mean of the eigenvalues of K, d = 1.2 (1 - e) g, f^2 = e^2 (eps + u^2),
    F = eps^(1/2) (K + h + eps K^-1) + u^2 / (eps + u^2)^(1/2), and the squares of g and u are
    h^2 (|M|^2 / |Z|^2 + r^-2) / (1 + r^-2) and 0.2^2 |A - M|^2 / (r |Z|^2).
    """
    m = (a + a.T) / 2
    n, total = len(m), np.sum(z * z)
    total = total if total > 0 else m.dtype.type(1)
    eye = np.eye(n, dtype=m.dtype)
    k = z @ z.T / total
    inverse = np.linalg.inv(k + eps * eye)
    h = 1 / np.sqrt(np.mean(np.diag(inverse))) if n else 1
    g = h * np.sqrt((np.sum(m * m) / total + max(n, 1) ** -2.0) / (1 + max(n, 1) ** -2.0))
    noise = 0.2**2 * np.sum((a - m) ** 2) / total / max(n, 1)
    d, f = 1.2 * (1 - extrapolate) * g, extrapolate * np.sqrt(eps + noise)
    floor = eps**0.5 * (k + h * eye + eps * inverse) + noise / np.sqrt(eps + noise) * eye
    w = d * eye + extrapolate * f**2 / (d**2 + f**2) * floor
    return (np.sqrt(total) * w).astype(m.dtype)


def low_rank(factors, core):
    """B^T K B."""
    return factors.T @ core @ factors


def relative_error(found, truth):
    """Frobenius norm of the difference over that of the truth (absolute where that is 0)."""
    found, truth = np.asarray(found, float), np.asarray(truth, float)
    scale = np.linalg.norm(truth)
    return np.linalg.norm(found - truth) / (scale if scale > 0 else 1)


def eckart_young_error(h, rank):
    """The relative Frobenius error of the best approximation of that rank."""
    s = np.sort(np.abs(np.linalg.eigvalsh(np.asarray(h, float))))
    return np.sqrt(np.sum(s[: max(len(s) - rank, 0)] ** 2) / np.sum(s**2))


def numpy_fit(s, y, extrapolate):
    """`fit` in the dtype of its input by NumPy's reduced Householder QR: the float32 yardstick."""
    q, r = np.linalg.qr(s.T)
    q = q.T
    z = np.linalg.solve(r.T, y)
    a = z @ q.T
    m, p = (a + a.T) / 2, z - a @ q
    c = outside(a, z, extrapolate, np.finfo(s.dtype).eps)
    return q.T @ m @ q + q.T @ p + p.T @ q + p.T @ c @ p


def leading_triplet(a):
    """Sigma, u and v of the dense SVD, v's entry of largest magnitude positive."""
    u, s, vt = np.linalg.svd(a)
    sign = np.sign(vt[0, np.argmax(np.abs(vt[0]))])
    return s[0], sign * u[:, 0], sign * vt[0]


def first_order_svd_vjp(a, xi, phi, psi):
    """The cotangent of A for those of sigma, u and v, by four linear systems.

    With B = A / sigma, P = I - B B^T and Q = I - B^T B, the solution of K [f; g] = [phi; psi] is
    f = (x + y) / sigma, g = (z + w) / sigma for

        P x = phi,    P y = B psi,    Q z = B^T phi,    Q w = psi.

    P is singular along u and Q along v: all four are solved on the complements. What is left out
    there, parts of f along u and of g along v, does not enter the two terms of the cotangent of A.
    """
    sigma, u, v = leading_triplet(a)
    b = a / sigma
    outside_u = np.eye(len(u)) - np.outer(u, u)
    outside_v = np.eye(len(v)) - np.outer(v, v)
    p = np.eye(len(u)) - b @ b.T + np.outer(u, u)
    q = np.eye(len(v)) - b.T @ b + np.outer(v, v)
    x, y = np.linalg.solve(p, outside_u @ np.array([phi, b @ psi]).T).T
    z, w = np.linalg.solve(q, outside_v @ np.array([b.T @ phi, psi]).T).T
    f, g = (x + y) / sigma, (z + w) / sigma
    return xi * np.outer(u, v) + np.outer(outside_u @ f, v) + np.outer(u, outside_v @ g)


def lanczos(product, start, depth):
    """Orthonormal rows Q of a Krylov space and Q H Q^T, with full reorthogonalisation."""
    rows, images, v = np.zeros((0, len(start))), [], np.asarray(start, float)
    for _ in range(depth):
        for _ in range(2):
            v = v - rows.T @ (rows @ v)
        rows = np.concatenate([rows, v[None] / np.linalg.norm(v)])
        v = np.asarray(product(rows[-1]), float)
        images.append(v)
    return rows, rows @ np.transpose(images)


def block_bfgs(s, y):
    """The update of c I by all pairs at once, `B S^T = Y^T`, for a symmetric definite S Y^T."""
    q, _ = whitened(s, y, len(s))
    return complement_curvature(s, y) * (np.eye(s.shape[1]) - q.T @ q) + y.T @ np.linalg.solve(
        s @ y.T, y
    )


def conjugated_bfgs(s, y, damping=None):
    """The dense model after BFGS updates, oldest pair first, made conjugate where pairs agree."""
    c = complement_curvature(s, y) if damping is None else damping
    if damping is not None:
        y = y + damping * np.where(np.sum(s * y, axis=1) < 0, -1, 1)[:, None] * s
    done = []
    for step, diff in zip(s[::-1], y[::-1], strict=True):
        measured = step @ diff
        for newer, newer_diff in done:
            slope = newer @ newer_diff
            gap = (step @ newer_diff - newer @ diff) ** 2
            share = 1 / (1 + gap / (0.01 * abs(slope * measured)))
            along = share * (step @ newer_diff) / slope
            step, diff = step - along * newer, diff - along * newer_diff
        done.append((step, diff))
    b = c * np.eye(s.shape[1])
    for step, diff in done[::-1]:
        image = b @ step
        b = b - np.outer(image, image) / (step @ image) + np.outer(diff, diff) / abs(step @ diff)
    return b


def complement_curvature(s, y):
    """`y.y / |s.y|` of the newest pair, at most ten times the largest |y| / |s|."""
    steepest = np.max(np.linalg.norm(y, axis=1) / np.linalg.norm(s, axis=1))
    return min(y[-1] @ y[-1] / abs(s[-1] @ y[-1]), 10 * steepest)
