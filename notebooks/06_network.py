# %% [markdown]
# # A network: how sharp is its loss, and which example moved it?
#
# Two networks learn to read handwritten digits: a convolutional one of flax with ReLU, 105,226
# parameters, and a transformer of equinox, 101,194 parameters in 29 arrays. Their parameters go
# into the library as they are. Three questions:
#
# 1. How do the largest eigenvalues of the loss's Hessian change while they learn?
# 2. How does the loss look around the place where training ends?
# 3. Which training examples helped, and which hurt, the answer to one test image?
#
# Each answer is held against one that has been found in another way: SciPy's eigenvalues of exact
# Hessian-vector products; the loss itself; training that is repeated without the example.

# %%
import sys
from pathlib import Path

sys.path += map(str, Path(globals().get("__file__", "here")).resolve().parents)  # for benchmarks/

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh

import lowrank_jax as lrj
from benchmarks import notebook
from benchmarks.notebook import BLUE, GREY, QUICK, RED, say
from benchmarks.problems import cnn_point, digits, transformer_point

COUNT = 40 if QUICK else 300  # images to learn from
TIMES = (0, 20) if QUICK else (0, 10, 20, 40)  # steps of Adam, after which we look
if QUICK:  # most of the time is compilation
    POINTS = {"transformer, equinox": transformer_point(COUNT, depth=1)}
else:
    POINTS = {"CNN, flax": cnn_point(COUNT), "transformer, equinox": transformer_point(COUNT)}

# %% [markdown]
# ## 1. Sharpness and leading eigenvalues during training
#
# `lrj.lowrank_hessian(loss, 4, passes=4)` takes 17 gradients, and those that find the length of the
# steps. With `return_pairs=True` come the pairs, and with them two doubts are answered:
# `pairs.rounding` estimates the relative error of the gradient differences, and `ritz_pairs` has a
# residual for each eigenvalue. Neither looks at anything but gradients.
#
# Where the network is a ReLU network at its start, many units sit on their kinks. The gradient
# jumps there, no step is good, and `rounding` should say so (above 0.03).


# %%
def train(point):
    """The parameters after each of the TIMES."""
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(x, state):
        updates, state = optimizer.update(jax.grad(point.loss)(x, *point.data), state)
        return optax.apply_updates(x, updates), state

    x, state, kept = point.x, optimizer.init(point.x), {}
    for time_ in range(TIMES[-1] + 1):
        if time_ in TIMES:
            kept[time_] = x
        x, state = step(x, state)
    return kept


def exact_eigenvalues(point, x, count=3):
    """The largest eigenvalues, by SciPy's Lanczos method over exact products."""
    flat, unravel = ravel_pytree(x)
    product = lrj.hvp(point.loss)

    def multiply(v):
        v = unravel(jnp.asarray(v.ravel(), flat.dtype))
        return np.asarray(ravel_pytree(product(x, v, *point.data))[0])

    a = LinearOperator((flat.size, flat.size), multiply, dtype=np.float32)
    start = np.random.default_rng(0).normal(size=flat.size).astype(np.float32)
    values = eigsh(a, k=count, which="LA", v0=start, tol=1e-3, return_eigenvectors=False)
    return np.sort(values)[::-1]


say(f"1. sharpness of two networks on {COUNT} images")
found = {}
for name, point in POINTS.items():
    hessian_at = lrj.lowrank_hessian(point.loss, 4, passes=4, return_pairs=True)
    kept = train(point)
    print(f"  {name}: three largest eigenvalues by gradients, residuals; by exact products")
    for time_, x in kept.items():
        h, pairs = hessian_at(x, *point.data, key=jax.random.key(0))
        values, _, residuals = lrj.ritz_pairs(pairs)
        order = np.argsort(-np.asarray(values))[:3]
        values, residuals = np.asarray(values)[order], np.asarray(residuals)[order]
        exact = exact_eigenvalues(point, x)
        doubt = float(np.max(pairs.rounding))
        found[name, time_] = x, h, pairs, values, residuals, exact, doubt
        numbers = ["".join(f"{v:8.2f}" for v in of) for of in (values, residuals, exact)]
        print(f"    {time_:4} steps {numbers[0]}  +-{numbers[1]}  {numbers[2]}", end="")
        print(f"   doubt {doubt:.3f}", flush=True)
for (name, time_), (*_, values, residuals, exact, doubt) in found.items():
    flagged, converged = doubt > 0.03, residuals[0] < 0.05 * values[0]
    if name.startswith("CNN") and time_ == 0:
        assert flagged
        assert abs(values[0] / exact[0] - 1) > 0.05
    assert flagged or abs(values[0] / exact[0] - 1) < (0.05 if converged else 0.2), (name, time_)

# %% [markdown]
# At its start the convolutional network is flagged, and rightly: its largest eigenvalue is off by
# several percent. Later `rounding` comes close to the bound, and the largest eigenvalue is right
# all the same: a flag is a doubt about all pairs. Where nothing is flagged and the residual is
# small, the largest eigenvalue is right to a few percent. At the transformer's start four passes
# have not yet found the eigenvalues, and their residuals say so.
#
# ## 2. The loss around the end of training
#
# `lrj.plot.landscape` evaluates the loss in the plane of the two leading eigenvectors. The
# dashed lines are the quadratic model there: value, slope and two eigenvalues. It holds for a short
# way only, on which the loss rises by half of its value. Along a random direction nothing happens.

# %%
point = POINTS["transformer, equinox"]
x, h, pairs, *_ = found["transformer, equinox", TIMES[-1]]
images, labels = point.data


@jax.jit
def loss(x):
    return point.loss(x, images, labels)


say("2. the loss in the plane of two eigenvectors")
figure, axes = notebook.panels("ab\ncd", (13, 12))
RADIUS, GRID = 0.15, 5 if QUICK else 21
lrj.plot.landscape(loss, x, h, ax=axes["b"], radius=RADIUS, count=GRID)

slopes = jax.jit(jax.grad(loss))(x)
eigenvalues, eigenvectors = h.truncate(2).eigh()
first, second = np.asarray(eigenvalues, float)
along = np.asarray(
    jax.vmap(lambda v: jnp.vdot(ravel_pytree(v)[0], ravel_pytree(slopes)[0]))(eigenvectors), float
)
a, b = np.meshgrid(np.linspace(-RADIUS, RADIUS, 61), np.linspace(-RADIUS, RADIUS, 61))
modelled = float(loss(x)) + along[0] * a + along[1] * b + (first * a**2 + second * b**2) / 2
levels = axes["b"].collections[-1].levels
axes["b"].contour(a, b, modelled, levels, colors=RED, linewidths=1.5, linestyles="dashed")


def moved(distances, plane):
    """The loss at x + a u + b v, for a plane (u, v)."""
    step = jax.tree.map(lambda rows: jnp.tensordot(distances, rows, 1), plane)
    return float(loss(jax.tree.map(jnp.add, x, step)))


random_plane = jax.tree.map(
    lambda rows: jnp.asarray(np.random.default_rng(1).normal(size=rows.shape), rows.dtype),
    eigenvectors,
)
size = np.sqrt(sum(np.sum(np.square(rows[0])) for rows in jax.tree.leaves(random_plane)))
corner = np.float32([0.03, 0])
rises = {
    "along the first eigenvector": moved(corner, eigenvectors) - float(loss(x)),
    "  in the quadratic model": float(along[0] * 0.03 + first * 0.03**2 / 2),
    "along a random direction": moved(corner / size, random_plane) - float(loss(x)),
}
print(f"  loss {float(loss(x)):.4f}; its rise over a distance of 0.03:")
for direction, rise in rises.items():
    print(f"    {direction:30}{rise:10.5f}")
in_truth, in_model, at_random = rises.values()
assert abs(in_model / in_truth - 1) < 0.5
assert abs(at_random) < 0.1 * in_truth

# %% [markdown]
# ## 3. The influence of one example
#
# Had one training image been missing, what would the network say of a test image? To first order
# the parameters move by `(H + d I)^-1 g / n`, with g the image's own gradient: the answer of a
# training that starts at the end of the first one, and is held there by a spring of strength d.
# One solution `v = (H + d I)^-1 g_test` gives the influence of all images, as `<v, g> / n`.
#
# The products with H are exact ones, so that the solution is exact, by conjugate gradients. The
# H_r of part 1, which is there already, only speeds them up: `h.positive_part().inverse(d)` is
# their preconditioner, one product with its factors for each step.

# %%
DAMPING = 20.0 if QUICK else 1.0  # above the most negative eigenvalue
flat, unravel = ravel_pytree(x)
exact_product = lrj.hvp(point.loss)
test_images, test_labels = (array[COUNT : 2 * COUNT] for array in digits())


def flatten(tree):
    return ravel_pytree(tree)[0]


@jax.jit
def each_loss(x, images, labels):
    return jax.vmap(lambda i, c: point.loss(x, i[None], c[None]))(images, labels)


@jax.jit
def damped_product(x, v, images, labels):
    return flatten(exact_product(x, unravel(v), images, labels)) + DAMPING * v


def product(v):
    return damped_product(x, v, images, labels)


inverse = h.positive_part().inverse(DAMPING)


def preconditioner(v):
    return flatten(inverse @ unravel(v))


def conjugate_gradients(product, right, precondition, tolerance=1e-4):
    """The solution, and the norm of the residual after each product, over that at the start."""
    solution, residual = jnp.zeros_like(right), right
    z = direction = precondition(residual)
    norms = [1.0]
    while norms[-1] > tolerance:
        image = product(direction)
        curvature = direction @ image
        if not curvature > 0:
            raise ValueError("H + d is not positive definite: choose a larger damping")
        length = residual @ z / curvature
        solution, last = solution + length * direction, residual @ z
        residual = residual - length * image
        z = precondition(residual)
        direction = z + residual @ z / last * direction
        norms.append(float(jnp.linalg.norm(residual) / jnp.linalg.norm(right)))
    return solution, norms


say("3. influence on the loss of one test image")
test_losses = np.asarray(each_loss(x, test_images, test_labels))
chosen = int(np.argmin(np.abs(test_losses - 1)))  # one that is read with doubt
test = test_images[chosen : chosen + 1], test_labels[chosen : chosen + 1]
test_gradient = flatten(jax.jit(jax.grad(point.loss))(x, *test))
solution, plain = conjugate_gradients(product, test_gradient, lambda v: v)
preconditioned_solution, faster = conjugate_gradients(product, test_gradient, preconditioner)
print(
    f"  products to a residual of 1e-4: {len(plain) - 1}, with the preconditioner {len(faster) - 1}"
)
assert len(faster) < 0.7 * len(plain)
assert jnp.linalg.norm(solution - preconditioned_solution) < 1e-3 * jnp.linalg.norm(solution)


@jax.jit
def influences(x, v, images, labels):
    """How much the loss of the test image changes where each of the training images is missing."""
    along_v = (unravel(v),)
    return jax.jvp(lambda x: each_loss(x, images, labels), (x,), along_v)[1] / COUNT


predicted = np.asarray(influences(x, preconditioned_solution, images, labels))


# %% [markdown]
# The truth: the training is repeated without the image, with the spring, by L-BFGS to its end.


# %%
@jax.jit
@jax.value_and_grad
def without(v, image, label):
    """The loss of the others, less its slope at the start, and the spring; v is the way from x."""
    there = unravel(flat + v)
    held = DAMPING * v @ v / 2 - flatten(slopes) @ v
    return point.loss(there, images, labels) + held - point.loss(there, image, label) / COUNT


def retrained(index):
    """The change of the test image's loss where the training image of that index is missing."""
    left_out = images[index : index + 1], labels[index : index + 1]

    def in_double(v):
        value, gradient = without(jnp.asarray(v, flat.dtype), *left_out)
        return float(value), np.asarray(gradient, float)

    start = np.zeros(flat.size)
    options = {"maxiter": 20 if QUICK else 60, "gtol": 1e-6, "ftol": 0}
    way = scipy.optimize.minimize(in_double, start, jac=True, method="L-BFGS-B", options=options).x
    there = unravel(flat + jnp.asarray(way, flat.dtype))
    return float(point.loss(there, *test) - point.loss(x, *test))


order = np.argsort(predicted)
picked = [order[0], order[-1]] if QUICK else [*order[:3], *order[-3:]]
true = np.array([retrained(i) for i in picked])
print(f"  the test image is a {int(test[1][0])}, its loss {test_losses[chosen]:.2f}")
print("  change of its loss without a training image: predicted, and trained again")
for i, change in zip(picked, true, strict=True):
    print(f"    image {i:4}, a {int(labels[i])}: {predicted[i]:9.5f}{change:9.5f}")
correlation = np.corrcoef(predicted[picked], true)[0, 1]
print(f"  correlation {correlation:.3f}")
assert np.all(np.sign(true) == np.sign(predicted[picked]))
assert correlation > 0.9
assert np.all(np.abs(true / predicted[picked] - 1) < 2)

# %% [markdown]
# The sign is right each time. The size is right within a factor of two or so: an image that is
# missing altogether is no small change for a network that has seen 300. The preconditioner halves
# the number of products.
#
# ## What it looks like

# %%
left = axes["a"]
for name, color in zip(POINTS, (RED, BLUE)[-len(POINTS) :], strict=True):
    rows = [found[name, time_] for time_ in TIMES]
    places = np.arange(len(TIMES))
    for i, (*_, values, residuals, _, doubt) in enumerate(rows):
        fill = "white" if doubt > 0.03 else color
        style = {"color": color, "mfc": fill, "ms": 8, "capsize": 4}
        left.errorbar(places[i] * np.ones(3), values, residuals, fmt="o", **style)
    left.plot(places, [row[5] for row in rows], "_-", color=color, lw=1, ms=14, alpha=0.6)
    left.plot([], [], "o-", color=color, label=name)
left.plot([], [], "o", color="k", mfc="white", label="flagged")
left.plot([], [], "k_-", lw=1, label="exact products, SciPy")
left.set(yscale="log", xticks=places, xlabel="steps of Adam", ylabel="eigenvalue")
left.set_xticklabels(TIMES)
left.set_ylim(2, 200)
notebook.plain_ticks(left.yaxis, [3, 10, 30, 100])
left.legend(loc="lower right")
left.set_title("a. Three largest eigenvalues from gradients,\nwith residuals")

right = axes["b"]
right.plot([], [], color="#33415c", lw=0.8, label="loss")
right.plot([], [], "--", color=RED, lw=1.5, label="quadratic model")
right.legend(loc="upper left", frameon=True)
right.set_title("b. The transformer's loss in the plane\nof its two leading eigenvectors")

below = axes["c"]
below.plot(plain, color=GREY, lw=2.5, label="conjugate gradients")
below.plot(faster, color=RED, lw=2.5, label="preconditioned with $H_r$")
below.set(yscale="log", xlabel="exact products", ylabel="residual")
below.legend(loc="upper right")
below.set_title("c. One solution with $H + d\\,I$")

last = axes["d"]
limit = 1.15 * np.abs([*predicted[picked], *true]).max()
last.plot([-limit, limit], [-limit, limit], color="#555555", lw=1)
last.plot(predicted[picked], true, "o", color=RED, ms=9)
last.set(xlabel="predicted by influence", ylabel="trained again without the image")
last.set_title("d. Change of a test image's loss\nwithout one training image")
notebook.save(figure, "network.png")

# %% [markdown]
# ## Limits
#
# * **A preconditioner costs its gradients** (33, with those that find the steps). For one solution
#   that is more than it saves; for one at each of many test images it is not.
# * **An influence is a derivative**: it is that of one image, near the end of training, held by the
#   spring. Without the spring training may go elsewhere altogether.
# * **The largest eigenvalues only.** What 17 gradients tell of the other 100,000 is in the
#   residuals: little.
