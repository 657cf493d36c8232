# %% [markdown]
# # Do the rules of matrix calculus hold for a Hessian made of gradients?
#
# A course on matrix calculus derives Hessians with pencil and paper: `2 A K B` for a loss of a
# matrix, `X^T diag(p (1 - p)) X / n` for logistic regression, `diag(p) - p p^T` for softmax. Then
# come the rules: trace and determinant from eigenvalues, the derivative of an inverse, what
# another inner product does. `lowrank_jax` never sees the formula of a loss. It is given gradients
# at a cloud of points and returns an operator `H_r`. Here we ask the operator what the rules say
# of `H`, and compare with pencil and paper.
#
# 1. Losses of a matrix
# 2. Second derivatives by polarization
# 3. Functions with several outputs
# 4. Least squares, Newton's step and the pseudo-inverse
# 5. Eigenvalues: bounds, trace, determinant, exponential
# 6. A network's gradient by hand
# 7. Another inner product
# 8. Derivatives of what depends on `H`
# 9. Logistic regression and softmax
# 10. What a gradient step really changes
#
# The clouds span the whole space (but for that in 6), so that all of `H` is measured. Each section
# is a function, whose names are its own.

# %%
import sys
from functools import partial
from pathlib import Path

sys.path += map(str, Path(globals().get("__file__", "here")).resolve().parents)  # for benchmarks/

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import lowrank_jax as lrj
from benchmarks import notebook
from benchmarks.notebook import say
from benchmarks.problems import digits, image_loss

RANDOM = np.random.default_rng(0)


def normal(*shape):
    """Standard normal numbers, float32."""
    return RANDOM.standard_normal(shape, np.float32)


def section(title, columns=("found", "closed form")):
    """The head of a section's table."""
    say(title)
    print(f"  {'':38}" + "".join(f"{column:>25}" for column in columns), end="")
    print(f"{'error':>9}{'allowed':>9}", flush=True)


def check(claim, found, closed_form, allowed):
    """One row: the error |found - closed form| / |closed form|, which must be within `allowed`."""

    def numbers(tree):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(float)

    def shown(x):
        return " ".join(f"{number:.4g}" for number in x) if len(x) <= 3 else shown(x[:2]) + " .."

    found, closed_form = numbers(found), numbers(closed_form)
    error = np.linalg.norm(found - closed_form) / np.linalg.norm(closed_form)
    print(f"  {claim:38}{shown(found):>25}{shown(closed_form):>25}", end="")
    print(f"{error:9.0e}{allowed:9.0e}", flush=True)
    assert error <= allowed, f"{claim}: relative error {error:.2e}, {allowed:.0e} allowed"


# %% [markdown]
# Everything runs in float32, JAX's default, which has 7 digits. Two kinds of loss occur, and they
# allow two accuracies.
#
# * **Quadratic losses.** A difference of gradients is `H s` exactly, whatever the length of the
#   step. Only rounding is left; we allow a relative error of `ROUNDING`.
# * **All others.** The difference of gradients on a step of length r is off by the third
#   derivatives, order r. On a cloud that is symmetric about its centre, `x + s` and `x - s`, they
#   cancel, and order r^2 is left, against a rounding error of order 1e-7 / r. We take
#   r = 0.03 and allow `CURVED`.

# %%
ROUNDING, CURVED, RADIUS = 2e-5, 2e-3, 0.03


def symmetric_cloud(x, n):
    """The 2 n points x + s and x - s, for n random steps s of length RADIUS."""
    steps = normal(n, len(x))
    steps *= RADIUS / np.linalg.norm(steps, axis=1, keepdims=True)
    return np.concatenate([x + steps, x - steps])


def symmetric(a):
    """The symmetric part of a matrix."""
    return (a + a.T) / 2


def positive_definite():
    """A random matrix with eigenvalues from 1 to 5, roughly."""
    root = normal(3, 3) / 2
    return root @ root.T + np.eye(3, dtype=np.float32)


# %% [markdown]
# The closed forms are computed by NumPy. `lrj.secant_hessian(loss)(points)` is called without
# `jax.jit` where it is called once: the fit is a jitted function already, and it is compiled again
# only for a new shape of the cloud. That is why many clouds below are 12 points in three
# dimensions. Even so, nearly all time of this notebook is compilation, for problems that run in
# no time.

# %% [markdown]
# ## 1. Losses of a matrix
#
# The derivative of `f(X) = tr(X^T A X B)` is a linear map of the change `K` of `X`,
#
#     df = <A X B + A^T X B^T, K>,        <X, Y> = tr(X^T Y),
#
# and its Hessian is one that takes matrices to matrices, `H[K] = A K B + A^T K B^T`. With
# symmetric A and B this is `2 A K B`. Written as a matrix, it is `2 A ⊗ B`, whence `tr H = 2 tr A
# tr B` and `|H| = 2 |A| |B|`.
#
# A point of `lowrank_jax` may have any shape. A stack of 4 x 3 matrices gives an operator that
# acts on 4 x 3 matrices, and `H @ K` is one.


# %%
def trace_loss(X, A, B):
    return jnp.trace(X.T @ A @ X @ B)


trace_hessian = jax.jit(lrj.secant_hessian(trace_loss))
MATRICES = normal(20, 4, 3)  # a cloud of 20 points in 12 dimensions


def losses_of_a_matrix():
    section("1. losses of a matrix: f(X) = tr(X^T A X B), X of shape (4, 3)")
    A, B, K = normal(4, 4), normal(3, 3), normal(4, 3)
    H = trace_hessian(MATRICES, A, B)
    check("H[K] = A K B + A^T K B^T", H @ K, A @ K @ B + A.T @ K @ B.T, ROUNDING)

    S, T = symmetric(A), symmetric(B)
    of_both = trace_hessian(MATRICES, S, T)
    check("symmetric A and B:  H[K] = 2 A K B", of_both @ K, 2 * S @ K @ T, ROUNDING)
    check("the matrix of H = 2 A ⊗ B", of_both.to_dense(), 2 * np.kron(S, T), ROUNDING)
    check("tr H = 2 tr A tr B", of_both.trace(), 2 * np.trace(S) * np.trace(T), ROUNDING)
    norms = np.linalg.norm(S) * np.linalg.norm(T)
    check("|H| = 2 |A| |B|", of_both.frobenius_norm(), 2 * norms, ROUNDING)


losses_of_a_matrix()

# %% [markdown]
# ## 2. Second derivatives by polarization
#
# Often one knows the second derivative only along single directions, `q(h) = <h, H h>`, the second
# derivative of `f(x + t h)` in t. That is enough: the form of two directions is
#
#     <h, H k> = (q(h + k) - q(h - k)) / 4.
#
# `H.bilinear(h, k)` is the form itself. `lrj.second_derivative` takes it from the loss, by
# differentiating twice.


# %%
def polarization():
    section("2. polarization, the same loss: <h, H k> = 2 tr(h^T A k B)")
    A, B, (h, k) = symmetric(normal(4, 4)), symmetric(normal(3, 3)), normal(2, 4, 3)
    H = trace_hessian(MATRICES, A, B)

    def q(h):
        return H.bilinear(h, h)

    form = 2 * np.trace(h.T @ A @ k @ B)
    check("(q(h + k) - q(h - k)) / 4", (q(h + k) - q(h - k)) / 4, form, ROUNDING)
    check("H.bilinear(h, k)", H.bilinear(h, k), form, ROUNDING)
    twice = jax.jit(lrj.second_derivative(trace_loss))(MATRICES[0], h, k, A, B)
    check("lrj.second_derivative", twice, form, ROUNDING)


polarization()

# %% [markdown]
# ## 3. Functions with several outputs
#
# The second derivative of `f: R^n -> R^m` is an array with three axes, one symmetric matrix for
# each output. `jax.vmap` over the number of the output makes one operator of each. For `f_i(x) =
# tanh(w_i . x)` they have rank 1,
#
#     H_i = -2 f_i (1 - f_i^2) w_i w_i^T.


# %%
def several_outputs():
    section("3. several outputs: f(x) = tanh(W x), three outputs, three inputs")
    W, x, v = normal(3, 3) / 2, normal(3), normal(3)
    points = symmetric_cloud(x, 6)

    def output(x, i):
        return jnp.tanh(W @ x)[i]

    by_output = jax.vmap(lrj.secant_hessian(output), in_axes=(None, 0))
    hessians = jax.jit(by_output)(points, jnp.arange(3))
    f = np.tanh(W @ x)
    closed_form = (-2 * f * (1 - f**2))[:, None, None] * W[:, :, None] * W[:, None, :]  # (3, 3, 3)
    matrices = jax.vmap(lambda H: H.to_dense())(hessians)
    for i in range(3):
        check(f"H_{i} = -2 f (1 - f^2) w w^T", matrices[i], closed_form[i], CURVED)
    products = jax.vmap(lambda H: H @ v)(hessians)
    check("H_i v, all outputs at once", products, closed_form @ v, CURVED)


several_outputs()

# %% [markdown]
# ## 4. Least squares, Newton's step and the pseudo-inverse
#
# `E(w) = |X w - y|^2` has the gradient `2 X^T (X w - y)` and the Hessian `2 X^T X`, the same
# everywhere. Where that is invertible, E is a bowl with one bottom, and one Newton step leads
# there *from any start*:
#
#     w - H^-1 grad E(w) = (X^T X)^-1 X^T y = X^+ y.
#
# We fit the parabola `a0 + a1 x + a2 x^2` to five points. `H.solve(v, damping)` is `(H + damping
# I)^-1 v`; the eigenvalues of H are above 4, so that a damping of 1e-6 is not seen. `H.inertia()`
# counts the positive, negative and zero eigenvalues. All three are positive: it is the minimum.
#
# Where the columns of X are dependent, there is no inverse, and many w are best. The
# pseudo-inverse `H^+` inverts the eigenvalues that are not zero, and `X^+ y = H^+ 2 X^T y` is the
# shortest of all best w. With the eigenvectors as factors and 1/s as core, it is an operator
# again.


# %%
def least_squares():
    section("4. least squares: a parabola through (-2, 1) (0, 3) (1, 3) (3, 2) (4, 0)")
    abscissas, y = np.float32([-2, 0, 1, 3, 4]), np.float32([1, 3, 3, 2, 0])
    X = np.stack([np.ones(5, np.float32), abscissas, abscissas**2], axis=1)

    def squared_error(w, X, y):
        return jnp.sum((X @ w - y) ** 2)

    def pseudo_inverse(H):
        """`H^+`: the eigenvalues that are exactly 0 are those that are zero to rounding."""
        s, u = H.eigh()
        return lrj.SymmetricLowRank(u, jnp.diag(jnp.where(s == 0, 0, 1 / jnp.where(s == 0, 1, s))))

    H = lrj.secant_hessian(squared_error)(normal(12, 3), X, y)
    check("H = 2 X^T X", H.to_dense(), 2 * X.T @ X, ROUNDING)
    check("positive, negative, zero eigenvalues", H.inertia(), [3, 0, 0], 0)
    minimum = [3, 29 / 66, -19 / 66]
    for start in [np.zeros(3, np.float32), 10 * normal(3)]:
        step = -H.solve(jax.grad(squared_error)(start, X, y), damping=1e-6)
        check(f"Newton from {np.round(start, 1)}", start + step, minimum, 1e-3)
    check("H^+ 2 X^T y = X^+ y", pseudo_inverse(H) @ (2 * X.T @ y), minimum, 1e-4)

    dependent = np.stack([np.ones(5, np.float32), abscissas, 1 + abscissas], axis=1)
    of_rank_two = lrj.secant_hessian(squared_error)(normal(12, 3), dependent, y)
    check("dependent columns: eigenvalues +, -, 0", of_rank_two.inertia(), [2, 0, 1], 0)
    shortest = np.linalg.pinv(dependent.astype(float)) @ y
    found = pseudo_inverse(of_rank_two) @ (2 * dependent.T @ y)
    check("  H^+ 2 X^T y = X^+ y", found, shortest, 1e-4)


least_squares()

# %% [markdown]
# ## 5. Eigenvalues: bounds, trace, determinant, exponential
#
# For any v, `v^T H v / v^T v` lies between the smallest and the largest eigenvalue. The trace is
# the sum of the eigenvalues and the determinant their product. So, for a symmetric H,
#
#     det e^H = prod e^(s_i) = e^(sum s_i) = e^(tr H).
#
# `H.logdet(damping)` is the logarithm of `det(H + damping I)`. `H.map_spectrum(f)` applies a
# function with `f(0) = 0` to the eigenvalues; with `f(s) = e^s - 1` it gives `e^H - I`.


# %%
def eigenvalues():
    section("5. eigenvalues: f(x) = x^T A x / 2")
    A, v = symmetric(normal(3, 3)), normal(3)
    H = lrj.secant_hessian(lambda x: x @ A @ x / 2)(normal(12, 3))
    s, u = np.linalg.eigh(A.astype(float))
    found = np.sort(H.eigh()[0][:3])  # those of largest magnitude come first
    check("eigenvalues, ascending", found, s, ROUNDING)
    quotients = np.array(jax.jit(jax.vmap(lambda v: H.bilinear(v, v) / (v @ v)))(normal(1000, 3)))
    print(f"  1000 quotients v^T H v / v^T v: from {quotients.min():.3f} to {quotients.max():.3f},")
    print(f"  between the eigenvalues {found[0]:.3f} and {found[-1]:.3f}")
    assert found[0] - 1e-4 < quotients.min() < quotients.max() < found[-1] + 1e-4
    check("tr H = sum of the eigenvalues", H.trace(), np.sum(s), ROUNDING)
    damping = 0.1 - s[0]  # H + damping I is positive definite
    determinant = jnp.exp(H.logdet(damping))
    check("det(H + d I) = product of s_i + d", determinant, np.prod(s + damping), 1e-4)
    exponential = jax.jit(lambda H: H.map_spectrum(jnp.expm1))(H)  # e^H - I
    closed_form = (u * np.exp(s)) @ u.T @ v
    check("e^H v = v + H v + H H v / 2 + ..", v + exponential @ v, closed_form, 1e-4)
    check("log det e^H = tr H", exponential.logdet(damping=1.0), np.trace(A), 1e-4)


eigenvalues()

# %% [markdown]
# ## 6. A network's gradient by hand
#
# A network with the layers `z_l = W_l^T a_(l-1) + b_l`, `a_l = tanh(z_l)`, a linear last one and
# the cross-entropy of the label has one error vector for each layer. They are computed backwards,
#
#     e_L = softmax(z_L) - onehot(label),    e_l = (1 - a_l^2) * (W_(l+1) e_(l+1)),
#
# and the gradients are `a_(l-1) e_l^T` for `W_l` and `e_l` for `b_l`. That is all of
# backpropagation.
#
# The library needs no more than such gradients: `lrj.fit` takes pairs of steps and gradient
# differences, wherever they come from. Here they are ours, at points around the parameters, which
# are a pytree, and the operator acts on pytrees. We compare with an exact Hessian-vector product.


# %%
def backpropagation_by_hand():
    section("6. backpropagation by hand: a network 64-16-10, one digit")
    all_images, all_labels = digits()
    image, label = all_images[3], all_labels[3]
    params = [
        {"w": normal(64, 16) / 8, "b": normal(16) / 8},
        {"w": normal(16, 10) / 4, "b": normal(10) / 4},
    ]

    def backpropagation(params):
        """The gradient of `image_loss` in the parameters."""
        activations = [image]
        for layer in params[:-1]:
            activations.append(jnp.tanh(layer["w"].T @ activations[-1] + layer["b"]))
        last = params[-1]["w"].T @ activations[-1] + params[-1]["b"]
        error = jax.nn.softmax(last) - jax.nn.one_hot(label, 10)
        gradients = []
        for layer, activation in zip(reversed(params), reversed(activations), strict=True):
            gradients.append({"w": jnp.outer(activation, error), "b": error})
            error = (1 - activation**2) * (layer["w"] @ error)
        return gradients[::-1]

    def parameter_loss(params):
        return image_loss(image, label, params)

    by_hand = jax.jit(backpropagation)(params)
    check("gradient", by_hand, jax.jit(jax.grad(parameter_loss))(params), ROUNDING)
    flat, unravel = ravel_pytree(params)
    points = jax.vmap(unravel)(symmetric_cloud(np.array(flat), 4))  # leaves of leading axis 8
    pairs = jax.jit(lambda points: lrj.centered(points, jax.vmap(backpropagation)(points)))(points)
    H = lrj.fit(pairs)
    step = jax.tree.map(lambda leaf: leaf[0], pairs.steps)
    exact = jax.jit(lrj.hvp(parameter_loss))(params, step)
    check("H v for a step v, from our gradients", H @ step, exact, CURVED)


backpropagation_by_hand()

# %% [markdown]
# ## 7. Another inner product
#
# The derivative `df` is a linear map; to write it as a gradient takes an inner product, `df =
# <grad f, dx>`. Under `<u, v>_M = u^T M v` instead of `u^T v`, the gradient is `M^-1 g` and the
# operator of the second derivative `M^-1 H`. Both are computed by *rescaling the variables*: with
# `M = L L^T` and `z = L^T x`, the inner product of M in x is the usual one in z. So take the
# Hessian of `f(L^-T z)`, and carry the results back with `L^-T`.
#
# The gradient changes its direction, and the Hessian its eigenvalues. Newton's step `(M^-1 H)^-1
# M^-1 g = H^-1 g` changes nothing.
#
# All inner products of the library are the usual one. If the cloud does not span the space, what
# `H_r` assumes of the rest depends on it, and rescaling is how to choose.


# %%
def another_inner_product():
    section("7. the inner product u^T M v: f(x) = x^T A x / 2 - b^T x")

    A, M, b, x, v = positive_definite(), positive_definite(), *normal(3, 3)
    L = np.linalg.cholesky(M)
    back = np.linalg.inv(L).T  # x = back @ z

    def in_x(x):
        return x @ A @ x / 2 - b @ x

    def in_z(z):
        return in_x(back @ z)

    gradient = A @ x - b
    gradient_z = jax.grad(in_z)(L.T @ x)
    H = lrj.secant_hessian(in_z)(normal(12, 3))
    check("gradient = M^-1 g", back @ gradient_z, np.linalg.solve(M, gradient), ROUNDING)
    check("operator v = M^-1 H v", back @ (H @ (L.T @ v)), np.linalg.solve(M, A @ v), ROUNDING)
    eigenvalues = np.sort(np.linalg.eigvals(np.linalg.solve(M, A)).real)[::-1]
    check("eigenvalues = those of M^-1 H", H.eigh()[0][:3], eigenvalues, ROUNDING)
    newton = back @ H.solve(gradient_z, damping=1e-7)
    check("Newton's step = H^-1 g, for every M", newton, np.linalg.solve(A, gradient), 1e-4)


another_inner_product()

# %% [markdown]
# ## 8. Derivatives of what depends on H
#
# The fit is a differentiable function, and so are the operator's methods. If H depends on a
# parameter t, with `dH = dH/dt`, the rules are
#
#     d log det H = tr(H^-1 dH),     d H^-1 = -H^-1 dH H^-1,     d s_i = u_i^T dH u_i
#
# with the eigenpairs `s_i, u_i` (simple eigenvalues). Here `jax.grad` and `jax.jvp` go from t
# through the loss, its gradients on the cloud, the fit and the method. `H + damping I` takes the
# place of H.


# %%
def derivatives_through_the_operator():
    section("8. derivatives through the operator: f(x) = x^T (A + t E) x / 2, at t = 0")
    A, E, v = positive_definite(), symmetric(normal(3, 3)), normal(3)
    points, damping = normal(12, 3), 0.5
    inverse = np.linalg.inv(A + damping * np.eye(3))  # of H + damping I

    def operator(t):
        return lrj.secant_hessian(lambda x, t: x @ (A + t * E) @ x / 2)(points, t)

    def log_determinant(t):
        return operator(t).logdet(damping)

    def several(t):
        H = operator(t)
        return H @ v, H.solve(v, damping), H.eigh()[0][:3]

    def and_derivative(f):
        """f(0) and f'(0), the derivative by forward mode."""
        return jax.jit(lambda t: jax.jvp(f, (t,), (jnp.ones_like(t),)))(0.0)

    _, (d_product, d_solution, d_eigenvalues) = and_derivative(several)
    _, u = operator(0.0).eigh()
    check("d H v = dH v", d_product, E @ v, ROUNDING)
    check("d H^-1 v = -H^-1 dH H^-1 v", d_solution, -inverse @ E @ inverse @ v, 1e-4)
    check("d s_i = u_i^T dH u_i", d_eigenvalues, np.sum(u[:3] @ E * u[:3], axis=1), 1e-4)
    first, second = and_derivative(jax.grad(log_determinant))  # forward over reverse mode
    check("d log det H = tr(H^-1 dH)", first, np.trace(inverse @ E), 1e-4)
    check(
        "d^2 log det H = -tr(H^-1 dH H^-1 dH)", second, -np.trace(inverse @ E @ inverse @ E), 1e-4
    )


derivatives_through_the_operator()

# %% [markdown]
# ## 9. Logistic regression and softmax
#
# With `p_i = sigmoid(x_i . w)`, the mean loss of logistic regression has the Hessian `X^T diag(p
# (1 - p)) X / n`. It is positive semidefinite for all w: the problem is convex.
#
# The cross-entropy of the softmax has, in the logits, the gradient `p - onehot(label)` and the
# Hessian `diag(p) - p p^T`, which does not know the label. One direction is flat: adding one
# number to all logits changes nothing, `H 1 = 0`.


# %%
def logistic_regression_and_softmax():
    section("9. logistic regression, 200 points in three dimensions; softmax of three logits")
    X, w = normal(200, 3), normal(3)
    targets = RANDOM.integers(0, 2, 200)

    def logistic_loss(w):
        return jnp.mean(jax.nn.softplus(X @ w) - targets * (X @ w))

    def cross_entropy(z, label):
        return jax.nn.logsumexp(z) - z[label]

    of_labels = lrj.secant_hessian(logistic_loss)(symmetric_cloud(w, 6))
    p = 1 / (1 + np.exp(-X @ w))
    by_hand = (X.T * (p * (1 - p))) @ X / 200
    check("logistic: X^T diag(p (1 - p)) X / n", of_labels.to_dense(), by_hand, CURVED)

    z = normal(3)
    shares = np.exp(z) / np.sum(np.exp(z))
    closed_form = np.diag(shares) - np.outer(shares, shares)
    for label in (0, 2):
        H = lrj.secant_hessian(cross_entropy)(symmetric_cloud(z, 6), label)
        check(f"softmax, label {label}: diag(p) - p p^T", H.to_dense(), closed_form, CURVED)
    check("  the flat direction: H (z + 1) = H z", H @ (z + 1), H @ z, CURVED)


logistic_regression_and_softmax()

# %% [markdown]
# ## 10. What a gradient step really changes
#
# By the gradient alone, a step s changes the loss by `<g, s>`. Take a step against the gradient.
# Where the loss has no curvature along it, it falls by just that much, where the curvature is
# positive by *less*, where it is negative by *more*. How much, the quadratic model tells:
#
#     m(x + s) - m(x) = <g, s> + <s, H s> / 2.
#
# `lrj.quadratic_model(loss)(points)` makes it from the values and gradients at the points. We look
# at `f(x) = sum_i sin(x_i)`, whose Hessian is `diag(-sin x)`, at three points, and at the change
# of the loss in units of what the gradient predicts: 1 is as predicted. The figure below shows it
# for steps of many lengths.


# %%
def sine_loss(x):
    return jnp.sum(jnp.sin(x))


section(
    "10. the change by a gradient step s, in units of <g, s>: f(x) = sum_i sin(x_i)",
    columns=("quadratic model", "real change"),
)
LENGTHS = np.linspace(0.02, 0.6, 30, dtype=np.float32)  # steps -t g
STARTS = {"positive": -0.5, "no": 0.0, "negative": 0.5}


@jax.jit
@partial(jax.vmap, in_axes=(None, 0))
def changes(model, t):
    """The model's and the real change by the step -t g, over the gradient's prediction."""
    step = -t * model.grad
    real = sine_loss(model.center + step) - sine_loss(model.center)
    return jnp.stack([model.predicted_change(step), real]) / (model.grad @ step)


ratios = {}
for curvature, start in STARTS.items():
    model = lrj.quadratic_model(sine_loss)(symmetric_cloud(np.full(3, start, np.float32), 6))
    ratios[curvature] = np.array(changes(model, LENGTHS)).T  # (2, lengths): model, real
    predicted, real = ratios[curvature][:, 9]
    check(f"{curvature} curvature, step -{LENGTHS[9]:.1f} g", predicted, real, 1e-2)
assert ratios["positive"][1, 9] < 0.97 < 0.99 < ratios["no"][1, 9] < 1.01
assert ratios["negative"][1, 9] > 1.03

# %% [markdown]
# ## What it looks like

# %%
COLORS = {"positive": notebook.BLUE, "no": "#222222", "negative": notebook.BROWN}
figure, axes = notebook.panels("a", (8, 6))
ax = axes["a"]
for curvature, (of_model, of_loss) in ratios.items():
    color = COLORS[curvature]
    ax.plot(LENGTHS, of_model, color=color, lw=1.5)
    ax.plot(LENGTHS[1::2], of_loss[1::2], "o", color=color, ms=6)
    ax.text(0.61, of_model[-1], f"{curvature}\ncurvature", color=color, va="center")
ax.plot([], [], "o", color="k", ms=6, label="real change")
ax.plot([], [], color="k", lw=1.5, label="quadratic model")
ax.legend(loc="upper left")
ax.set(xlim=(0, 0.75), ylim=(0.78, 1.22), xticks=[0, 0.2, 0.4, 0.6])
ax.set_title("A step $s = -t\\,g$: change of the loss\nin units of the gradient's prediction")
ax.set(xlabel="step size $t$", ylabel="change of the loss / $\\langle g, s\\rangle$")
notebook.save(figure, "matrix_calculus.png")

# %% [markdown]
# ## Limits
#
# * **The rules held because the clouds span the space.** With fewer steps than dimensions, what is
#   outside their span is a guess; the first notebook shows how good.
# * **Losses that are not quadratic** cost half of the digits, and more without a symmetric cloud.
# * **Solutions and inverses lose digits with the condition number**, as everywhere: 170 for the
#   parabola, and two of seven digits. In higher degrees, fit orthogonal polynomials.
# * **Derivatives of eigenvalues and eigenvectors** need eigenvalues that are distinct. Those of
#   products, `solve`, `logdet`, trace and norm do not.
