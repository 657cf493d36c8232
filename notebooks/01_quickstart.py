# %% [markdown]
# # How good is a Hessian that was never differentiated twice?
#
# A Hessian says how a gradient changes: `H v` is what happens to the gradient on a small step
# along `v`. The usual way to get it is to differentiate a second time, with `jax.hessian` or
# with one Hessian-vector product for every direction. But often there are gradients already,
# at several points that lie close together: a few samples, a swarm, the steps of an optimizer.
# Two of them make a difference quotient. If `x_i` and `x_0` are close, then
#
#     g(x_i) - g(x_0)  is nearly  H (x_i - x_0),
#
# one linear equation for `H`. `lowrank_jax` takes a cloud of such points and returns a
# symmetric matrix of low rank, `H_r`, that solves these equations, for as many directions as
# the cloud has. It differentiates the loss once, never twice.
#
# Here is a problem small enough to compute the exact Hessian as well, so that the two can be
# compared: a network that reads handwritten digits, and the Hessian of the loss of *one image*
# with respect to its 64 *pixels*. It answers a question about robustness: which change of the
# image makes the loss bend the most?

# %%
import sys
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()
sys.path.insert(0, str(HERE.parent))  # finds benchmarks/ from any working directory

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

if "__file__" in globals():  # a script: no window
    matplotlib.use("Agg")
import matplotlib.pyplot as plt

import lowrank_jax as lrj
from benchmarks.problems import cloud, digits, image_loss, mean_loss, trained_mlp

IMAGES = 256
STEPS = 16  # each cloud: one image and 16 points around it, 17 gradients
EXTRAPOLATE = {"0": 0.0, "2/3": 2 / 3, "1": 1.0}  # 2/3 is the default
START = time.perf_counter()


def say(text):
    """One line of progress, visible at once, also in a log file."""
    print(f"[{time.perf_counter() - START:5.1f} s] {text}", flush=True)


# %% [markdown]
# ## The problem
#
# We train a network 64-128-128-10 on scikit-learn's 8 x 8 digits and pick 256 images at random.
# Around each image we put a cloud: the image itself, first, and 16 points one hundredth away
# from it, in random directions. (A pixel runs from 0 to 1.)

# %%
say("training the network on 1797 digits ...")
params = trained_mlp()
all_images, all_labels = digits()
say(f"trained; mean loss {mean_loss(params, all_images, all_labels):.3f}")

pick_key, cloud_key, vector_key = jax.random.split(jax.random.key(1), 3)
chosen = jax.random.choice(pick_key, len(all_images), (IMAGES,), replace=False)
images, labels = all_images[chosen], all_labels[chosen]
cloud_keys = jax.random.split(cloud_key, IMAGES)
clouds = jax.vmap(lambda key, x: cloud(key, x, STEPS))(cloud_keys, images)
say(f"clouds {clouds.shape}: images, points of each, pixels")

# %% [markdown]
# ## The call
#
# `lrj.secant_hessian(loss)` turns a loss into a function that takes *a stack of points* where
# the loss takes one, and returns the operator `H_r`. Only the first argument is such a stack
# (`argnums=0`, as in `jax.grad`); the label and the parameters are passed on to the loss.
# The result is a plain function, so `vmap` makes it one for many clouds and `jit` compiles it:
#
# * `in_axes=(0, 0, None)`: one cloud and one label for each operator, one network for all;
# * `pairing=lrj.from_first`: each step starts at the first point, the image. (The default,
#   `lrj.centered`, takes steps from the mean of the cloud.)
#
# All 256 operators come back as one `SymmetricLowRank`, whose arrays have a leading axis of
# 256. It is a pytree: use it under `vmap`, as in `jax.vmap(lambda h, v: h @ v)(operators, vs)`.

# %%
IN_AXES = (0, 0, None)
from_clouds = jax.jit(
    jax.vmap(lrj.secant_hessian(image_loss, pairing=lrj.from_first), in_axes=IN_AXES)
)
twice_differentiated = jax.jit(jax.vmap(jax.hessian(image_loss), in_axes=IN_AXES))


def timed(function, *args, repeats=15):
    """The result of a jitted function, the seconds to compile it and the median of its calls.

    Tracing counts as compilation.
    """
    start = time.perf_counter()
    compiled = function.lower(*args).compile()
    compilation = time.perf_counter() - start
    result, seconds = jax.block_until_ready(compiled(*args)), []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        seconds.append(time.perf_counter() - start)
    return result, compilation, float(np.median(seconds))


say("256 low-rank Hessians from gradients ...")
operators, *secant_seconds = timed(from_clouds, clouds, labels, params)
say(f"{operators}")
say("256 exact Hessians with jax.hessian, to compare ...")
exact, *hessian_seconds = timed(twice_differentiated, images, labels, params)

# %% [markdown]
# ## Against the exact Hessian
#
# 16 steps measure 16 of 64 dimensions. How does `H_r` act on the others? The measured part
# alone cannot tell, and the option `extrapolate` of `lrj.fit` decides:
#
# * `0` assumes nothing: among all symmetric matrices that fit, the one of least norm;
# * `1` assumes that `H` has no more than rank 16, and takes the matrix of that rank that fits;
# * `2/3`, the default, assumes it the more of a measured direction, the larger its curvature
#   is beside that of the others.
#
# At 1, the rank of `H_r` is 16 as a rule; below 1 it is larger, at most 32.
#
# We try all three: `solver=` takes the function that makes an operator of the pairs, `lrj.fit`
# unless told. `extrapolate` may be traced, so one compilation serves them all. Beside them stands
# the best matrix of rank 16 that there is (Eckart and Young: keep the 16 largest eigenvalues of
# the exact `H`). It is a yardstick and no competitor: one has to know `H` to find it. It is a
# `SymmetricLowRank` too, built by hand from its factors.


# %%
@jax.jit
def from_clouds_at(extrapolate, clouds, labels, params):
    """The same call, at any `extrapolate`."""
    solver = partial(lrj.fit, extrapolate=extrapolate)
    of_cloud = lrj.secant_hessian(image_loss, pairing=lrj.from_first, solver=solver)
    return jax.vmap(of_cloud, in_axes=IN_AXES)(clouds, labels, params)


@jax.jit
@jax.vmap
def best_of_rank(hessian):
    """The nearest matrix of rank `STEPS`, as an operator."""
    values, vectors = jnp.linalg.eigh(hessian)
    largest = jnp.argsort(-jnp.abs(values))[:STEPS]
    return lrj.SymmetricLowRank(vectors.T[largest], jnp.diag(values[largest]))


say("the same at extrapolate = 0, 2/3 and 1, and the best of rank 16 ...")
candidates = {
    name: from_clouds_at(value, clouds, labels, params) for name, value in EXTRAPOLATE.items()
}
candidates["best"] = best_of_rank(exact)

# %% [markdown]
# Two kinds of error. The relative Frobenius error `|H_r - H| / |H|` compares whole matrices.
# More often one needs a product `H v`, and there the error depends on `v`. For that,
# `lrj.compare_hvp` compares `H_r v` with exact Hessian-vector products of the loss. It needs
# no dense matrix, so it works for problems of any size. We give it three vectors per image:
# the gradient, a random vector, and one of the 16 steps that the cloud has measured.

# %%
gradients = jax.vmap(jax.grad(image_loss), in_axes=IN_AXES)(images, labels, params)
random_vectors = jax.random.normal(vector_key, images.shape)
vectors = jnp.stack([gradients, random_vectors, clouds[:, 1] - clouds[:, 0]], axis=1)


@jax.jit
def matrix_errors(operators):
    """|H_r - H| / |H| in the Frobenius norm, for each image."""
    difference = jax.vmap(lambda h: h.to_dense())(operators) - exact
    return jnp.linalg.norm(difference, axis=(1, 2)) / jnp.linalg.norm(exact, axis=(1, 2))


@jax.jit
@jax.vmap
def compare(operator, image, vectors, label):
    """H_r v against H v at one image, for each of its vectors."""
    return lrj.compare_hvp(image_loss, operator, image, vectors, label, params)


say("comparing matrices and products ...")
errors = {name: np.asarray(matrix_errors(h)) for name, h in candidates.items()}
products = {
    name: np.median(compare(h, images, vectors, labels).relative_error, axis=0)
    for name, h in candidates.items()
}
say("done")

# %% [markdown]
# ## The answer


# %%
def print_errors():
    """The relative errors of all candidates: three quantiles, and products with three vectors."""
    columns = [(errors[c], products[c]) for c in candidates]
    rows = {
        "|H_r - H| / |H|         median": [np.median(e) for e, _ in columns],
        "               95th percentile": [np.quantile(e, 0.95) for e, _ in columns],
        "                         worst": [np.max(e) for e, _ in columns],
        "|H_r v - H v| / |H v|, medians": [],
        "              v = the gradient": [p[0] for _, p in columns],
        "              v = random": [p[1] for _, p in columns],
        "              v = a step taken": [p[2] for _, p in columns],
    }
    print(f"\nRelative error of H_r: {IMAGES} images, 64 pixels, {STEPS + 1} gradients each\n")
    print(f"{'':32}|----- extrapolate -----|  best matrix")
    print(f"{'':30}" + "".join(f"{c:>9}" for c in EXTRAPOLATE) + f"{f'of rank {STEPS}':>14}")
    for title, row in rows.items():
        numbers = [f"{x:.3f}" if x >= 5e-4 else "< 0.001" for x in row]
        widths = (9, 9, 9, 14)
        print(f"{title:30}" + "".join(f"{x:>{w}}" for x, w in zip(numbers, widths, strict=False)))


def print_times():
    """Times for all images at once, beside those of the exact Hessian."""
    print(f"\n{f'Time of all {IMAGES} Hessians':30}{'one call':>12}{'compilation':>15}")
    for name, (compilation, call) in {
        "secant_hessian, low rank": secant_seconds,
        "jax.hessian, exact and dense": hessian_seconds,
    }.items():
        print(f"{name:30}{1e3 * call:9.1f} ms{compilation:13.2f} s")


def print_reading():
    """How to read the tables, in words."""
    half, best = np.median(errors["2/3"]), np.median(errors["best"])
    lowest = min(EXTRAPOLATE, key=lambda c: np.median(errors[c]))
    safest = min(EXTRAPOLATE, key=lambda c: np.max(errors[c]))
    ratio = secant_seconds[1] / hessian_seconds[1]
    print(f"""
How to read it: an error of 0 is exact, 1 is no better than H_r = 0. At the default, 2/3,
half of the operators are within {half:.0%} of H. For the best matrices of rank {STEPS}, made from H
itself, that number is {best:.0%}. The lowest median is at extrapolate = {lowest}, the lowest worst
case at {safest}. One call takes {ratio:.1f} times as long as jax.hessian: at 64 pixels, {STEPS + 1}
gradients and some inverses of 16 x 16 stand against 64 Hessian-vector products.
""")


print_errors()
print_times()
print_reading()

# %% [markdown]
# ## What it looks like
#
# Four images, from a good case to the worst one of all 256: those whose error is the 5th
# percentile, the median, the 95th percentile and the maximum. Each row shows the image; the
# direction in pixel space along which the loss bends the most, according to `H_r`; all
# eigenvalues of `H_r` on those of the exact `H`; and the 64 entries of `H_r v` against those
# of `H v`, for `v` the gradient. A perfect `H_r` has its dots on the diagonal.

# %%
EXACT, LOW_RANK = "#b4bac4", "#c8442e"
CASES = {"5th percentile": 0.05, "median": 0.5, "95th percentile": 0.95, "the worst": 1.0}
TITLES = (
    "The image",
    "Strongest curvature of $H_r$\n(red $+$, white 0, blue $-$)",
    "Eigenvalues, by magnitude\n(in units of the largest of $H$)",
    "$H_r v$ against $H v$, $v$ the gradient\n(in units of the largest entry of $H v$)",
)
STYLE = {"font.size": 13, "axes.titlesize": 14, "axes.titlepad": 12, "axes.edgecolor": "#555555"}


def by_magnitude(values):
    """Eigenvalues that are not zero, the largest magnitude first."""
    values = np.asarray(values)[np.asarray(values) != 0]
    return values[np.argsort(-np.abs(values))]


def draw_image(ax, i, case):
    """The digit, with its place among the 256 errors."""
    ax.imshow(images[i].reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[])
    ax.set_ylabel(f"{case}: error {errors['2/3'][i]:.2f}", fontsize=14, labelpad=12)
    ax.set_xlabel(f"a “{labels[i]}”")


def draw_direction(ax, i, operator):
    """The eigenvector of H_r for its eigenvalue of largest magnitude, as an image."""
    direction = np.asarray(operator.eigh()[1][0])
    values, vectors = np.linalg.eigh(np.asarray(exact[i], float))
    cosine = abs(direction @ vectors[:, np.argmax(np.abs(values))])
    limit = np.abs(direction).max()
    sign = 1 if direction.max() == limit else -1
    ax.imshow(sign * direction.reshape(8, 8), cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel(f"cosine with that of $H$: {cosine:.3f}")


def draw_spectrum(ax, i, operator):
    """Signed eigenvalues of H_r on those of H; linear below a hundredth, logarithmic above."""
    true_values = by_magnitude(np.linalg.eigvalsh(np.asarray(exact[i], float)))
    values, unit = by_magnitude(operator.eigenvalues()), np.abs(true_values[0])
    numbers = np.arange(1, 1 + max(len(values), len(true_values)))
    ax.bar(numbers[: len(true_values)], true_values / unit, color=EXACT, label="$H$, exact")
    dots = {"color": LOW_RANK, "ms": 5, "label": "$H_r$, 17 gradients"}
    ax.plot(numbers[: len(values)], values / unit, "o", **dots)
    ax.axhline(0, color="#555555", lw=0.8)
    ax.set_yscale("symlog", linthresh=1e-2, linscale=0.7)
    ticks = [-1, -0.1, -0.01, 0, 0.01, 0.1, 1]
    ax.set_yticks(ticks, [f"${tick:g}$" for tick in ticks])
    ax.set(xlim=(0, 65), ylim=(-2, 2), xticks=[1, 16, 32, 48, 64])
    ax.minorticks_off()


def draw_products(ax, i, operator):
    """The 64 entries of H_r v against those of H v."""
    truth, product = np.asarray(exact[i] @ gradients[i]), np.asarray(operator @ gradients[i])
    unit = np.abs(truth).max()
    limit = 1.12 * max(1, np.abs(product / unit).max())
    ax.plot([-limit, limit], [-limit, limit], color="#555555", lw=1)
    ax.plot(truth / unit, product / unit, "o", color=LOW_RANK, ms=6, alpha=0.6, mew=0)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    ax.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1])


def draw():
    """One row of four panels for each of the four cases."""
    ratios = {"width_ratios": [1, 1, 1.3, 1]}
    figure, axes = plt.subplots(4, 4, figsize=(16, 15), layout="constrained", gridspec_kw=ratios)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    order = np.argsort(errors["2/3"])
    for row, (case, fraction) in zip(axes, CASES.items(), strict=True):
        i = order[round(fraction * (IMAGES - 1))]
        operator = jax.tree.map(lambda leaf, i=i: leaf[i], operators)
        draw_image(row[0], i, case)
        draw_direction(row[1], i, operator)
        draw_spectrum(row[2], i, operator)
        draw_products(row[3], i, operator)
    for ax, title in zip(axes[0], TITLES, strict=True):
        ax.set_title(title)
    axes[0, 2].legend(frameon=False, loc="upper right")
    axes[-1, 2].set_xlabel("number of the eigenvalue")
    axes[-1, 3].set_xlabel("entry of $H v$")
    for ax in axes[:, 3]:
        ax.set_ylabel("entry of $H_r v$")
    return figure


say("drawing four of them ...")
with plt.rc_context(STYLE):
    figure = draw()
    path = HERE / "figures" / "quickstart.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100)
say(f"figure saved: {path.relative_to(HERE.parent)}")

# %% [markdown]
# ## Limits
#
# * **Only the steps are measured.** Along them `H_r` is right, up to how far the loss is from
#   quadratic on the cloud. Everywhere else it is a guess: good where few directions carry
#   most of the curvature, poor where the curvature is spread over many, as in the worst row.
#   The small eigenvalues of `H_r`, and their signs, mean little.
# * **A product is safest for vectors that lie in the directions of strong curvature,** as the
#   gradient does here. A random vector has most of its length elsewhere.
# * **The cloud has a right size.** Too wide, and the loss is not quadratic on it; too narrow,
#   and the differences of gradients are rounding noise. `lrj.diagnose(operator, pairs)` reports
#   both, from the pairs of `lrj.secant_pairs` alone and without the exact Hessian. It cannot
#   see the first limit: what was not measured is in no pair.
# * **Keep `extrapolate` at its default** unless you know that the rank of `H` is at most the
#   number of steps (then 1 is exact, for a quadratic loss), or want a guess that is never
#   larger than `H` itself (then 0).
# * **This is not the problem on which it pays.** With 64 dimensions, `jax.hessian` is cheap. In
#   general, a dense Hessian is D^2 numbers from D Hessian-vector products; the operator is
#   about 2 n D numbers from n + 1 gradients, which are often there already, and the loss
#   need not have a second derivative that JAX can compute.
