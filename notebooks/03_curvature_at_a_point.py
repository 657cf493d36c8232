# %% [markdown]
# # How much of a loss's curvature at a point can a few gradients tell, and what for?
#
# In the first notebook the points were given. Here there is *one* point, the parameters of a
# network, and the library chooses the others itself: `lrj.lowrank_hessian(loss, probes)` takes
# small steps away from the point, in random directions, and measures how the gradient changes.
# These changes show where the curvature is strong, so that the steps of the next *pass* go there.
# With b probes and p passes that is `b * p + 1` gradients, and the result is an operator `H_r`
# of low rank.
#
# A network with 26,122 parameters has 26,122 directions. What can 20 gradients know of them?
# We ask five things, and each answer is compared with exact second derivatives:
#
# 1. Which eigenvalues are found?
# 2. How large is the error, and what does it cost?
# 3. Does it tell how the loss looks around the point?
# 4. Does it work where JAX has no second derivative?
# 5. How sharp is the curvature during training, and can one train against it?

# %%
import sys
from pathlib import Path

sys.path += map(str, Path(globals().get("__file__", "here")).resolve().parents)  # for benchmarks/

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from matfree import decomp

import lowrank_jax as lrj
from benchmarks import notebook
from benchmarks.notebook import (
    BLUE,
    BROWN,
    GREY,
    QUICK,
    RED,
    by_magnitude,
    plain_ticks,
    say,
    seconds,
)
from benchmarks.problems import bead_chain, digits, init_mlp, mean_loss

RANDOM = np.random.default_rng(0)

# %% [markdown]
# ## The problem
#
# A network 64-128-128-10 reads scikit-learn's 8 x 8 digits; its loss is the mean cross-entropy over
# all 1797 of them. The point is where 100 steps of Adam have led. A small network 64-8-10 of the
# same kind has few enough parameters, 610, for the exact Hessian as a matrix.
#
# The library takes any pytree of parameters. Here they become one vector, because every leaf of a
# pytree takes its time to compile, and compilation is most of the time of this notebook. Images
# and labels are arguments of the loss: arrays that a jitted function closes over are constants
# to the compiler, and large ones make it slow. The loss is jitted, and what calls it only once
# need not be.

# %%
images, labels = digits()
optimizer = optax.adam(1e-3)


def network(sizes):
    """The loss of a network as a function of one vector of parameters; and random ones to start."""
    x, unravel = ravel_pytree(init_mlp(jax.random.key(0), sizes))

    @jax.jit
    def loss(x, images, labels):
        return mean_loss(unravel(x), images, labels)

    return loss, x


def trained(loss, x, steps):
    """The parameters at the start and after every 20 steps of Adam."""

    @jax.jit
    def train(carry, images, labels):
        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(jax.grad(loss)(x, images, labels), state)
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(step, carry, length=20)[0]

    carry, path = (x, optimizer.init(x)), [x]
    for _ in range(steps // 20):
        carry = train(carry, images, labels)
        path.append(carry[0])
    return path


small_loss, small_start = network((64, 8, 10))
WIDTH = 32 if QUICK else 128
loss, start = network((64, WIDTH, WIDTH, 10))
small_x = trained(small_loss, small_start, 600)[-1]
path = trained(loss, start, 100)
x = path[-1]
say(f"two networks trained: {len(small_x)} and {len(x)} parameters")

# %% [markdown]
# ## 1. Which eigenvalues are found?
#
# The small network first. `jax.hessian` gives all 610 eigenvalues, positive and negative ones.
# Against them stand two settings of the same cost: 20 random directions in one pass, and 4
# directions in 5 passes, where each pass looks where the last one found curvature.
#
# The table shows the ten eigenvalues of largest magnitude, and by how much each is off. One pass
# sees that there is strong curvature, but all of it too weak. Five passes find the eight
# eigenvalues that stand out, and then less and less. The small ones stay unknown either way
# (panel a below), and where `H_r` has negative ones here, they are not those of `H`.


# %%
dense = jax.jit(jax.hessian(small_loss))(small_x, images, labels)
exact_values = by_magnitude(np.linalg.eigvalsh(np.asarray(dense, float)))
say(f"1. eigenvalues of the small network, {len(small_x)} parameters")
found_values = {}
for probes, passes, name in [(20, 1, "20 probes, 1 pass"), (4, 5, "4 probes, 5 passes")]:
    hessian_at = lrj.lowrank_hessian(small_loss, probes, passes=passes, batch_size=1)
    h = hessian_at(small_x, images, labels, key=jax.random.key(1))
    found_values[name] = by_magnitude(h.eigenvalues())

print(f"  {'':30}" + "".join(f"{i:7}" for i in range(1, 11)))
print(f"  {'exact eigenvalues':30}" + "".join(f"{s:7.3f}" for s in exact_values[:10]))
eigenvalue_errors = {}
for name, values in found_values.items():
    eigenvalue_errors[name] = np.abs(values[:10] / exact_values[:10] - 1)
    row = "".join(f"{100 * e:6.1f}%" for e in eigenvalue_errors[name])
    print(f"  {f'{name}: off by':30}{row}")
assert np.all(eigenvalue_errors["4 probes, 5 passes"][:8] < 0.02)
assert np.all(eigenvalue_errors["20 probes, 1 pass"][:8] > 0.05)

# %% [markdown]
# ## 2. How large is the error, and what does it cost?
#
# Now the large network. Nobody forms a matrix of 26,122 x 26,122 numbers, but its products with
# vectors can be had: `lrj.hvp(loss)(x, v, ...)` is exact. With 64 random vectors V,
#
#     |H_r V - H V| / |H V|
#
# estimates the relative error of `H_r` in the Frobenius norm. It is 0 for a perfect operator, and
# 1 for `H_r = 0`.
#
# `lrj.lowrank_hessian(loss, b, passes=p)` fits the pairs that `lrj.probe_pairs` measures, and
# a pass does not know of those that come after. So we measure 40 pairs in passes of 4 and of 10,
# and fit the first few of them. The first passes of several keys together are one pass
# of more probes, all random. (Pairs that are not used become zero steps, which no fit uses. All
# fits then have one shape, and are compiled once.)
#
# The classic method is Lanczos with exact Hessian-vector products, one after the other; we take it
# from the library matfree, with full reorthogonalisation. The first k of its 40 vectors and the
# leading k x k block of its tridiagonal matrix T make the operator of depth k, `V^T T V`. (The
# rows of V are the vectors: that is a `SymmetricLowRank`, built by hand.) The errors are means
# over three random keys; those of one pass come from a single draw.

# %%
COUNTS = (12, 20, 40) if QUICK else (4, 8, 12, 16, 20, 28, 40)
PAIRS, KEYS = 40, jax.random.split(jax.random.key(2), 3)
vectors = RANDOM.standard_normal((16 if QUICK else 64, len(x)), np.float32)


@jax.jit
def exact_products(x, vectors, images, labels):
    product = lrj.hvp(loss)
    return jax.lax.map(lambda v: product(x, v, images, labels), vectors)


@jax.jit
def relative_error(hessian, vectors, products):
    difference = jax.vmap(hessian.mv)(vectors) - products
    return jnp.linalg.norm(difference) / jnp.linalg.norm(products)


def pairs_of(probes):
    """40 pairs, measured in passes of so many probes; for each key."""
    product = lrj.gradient_difference(loss)
    measure = lrj.probe_pairs(product, probes, passes=PAIRS // probes, batch_size=1)
    measure = jax.jit(measure)
    return [measure(x, images, labels, key=key) for key in KEYS]


def first(pairs, count):
    return jax.tree.map(lambda rows: np.array(rows)[:count], pairs)


def error_of(pairs):
    """The error of the fit of up to 40 pairs."""
    pairs = jax.tree.map(lambda rows: np.pad(rows, ((0, PAIRS - len(rows)), (0, 0))), pairs)
    return float(relative_error(lrj.fit(pairs), vectors, products))


def errors_of_lanczos():
    """The same for Lanczos with exact Hessian-vector products."""

    def product(v, x, images, labels):
        return lrj.hvp(loss)(x, v, images, labels)

    lanczos = jax.jit(decomp.tridiag_sym(PAIRS, reortho="full", custom_vjp=False), static_argnums=0)
    errors = {depth: [] for depth in COUNTS}
    for start in RANDOM.standard_normal((len(KEYS), len(x)), np.float32):
        out = lanczos(product, start, x, images, labels)
        for depth, found in errors.items():
            used = np.arange(PAIRS) < depth
            core = jnp.where(used[:, None] & used, out.J_small, 0)
            # As many factors as a fit of 40 pairs has: compiled already.
            factors, core = jnp.concatenate([out.Q_tall, out.Q_tall]), jnp.pad(core, (0, PAIRS))
            h = lrj.SymmetricLowRank(factors, core)
            found.append(float(relative_error(h, vectors, products)))
    return errors


products = exact_products(x, vectors, images, labels)
say(f"2. error and cost, {len(x)} parameters")
by_four, by_ten = pairs_of(4), pairs_of(10)
found_errors = {
    "4 probes a pass": {n: [error_of(first(p, n)) for p in by_four] for n in COUNTS},
    "10 probes a pass": {n: [error_of(first(p, n)) for p in by_ten] for n in (10, 20, 30, 40)},
    "all in one pass": {
        10 * n: [error_of(lrj.concatenate(*[first(p, 10) for p in by_ten[:n]]))] for n in (1, 2, 3)
    },
    "Lanczos, exact products": errors_of_lanczos(),
}
by_key = found_errors["4 probes a pass"][20]
errors = {
    name: {n: float(np.mean(found)) for n, found in curve.items()}
    for name, curve in found_errors.items()
}
print(f"  {'relative error after':44}" + "".join(f"{n:>5} products" for n in (12, 20, 40)))
for name, curve in errors.items():
    row = "".join(f"{curve[n]:14.3f}" if n in curve else f"{'':14}" for n in (12, 20, 40))
    print(f"  {name:44}{row}")
print(f"  (4 probes, 20 products: {min(by_key):.3f} to {max(by_key):.3f}, depending on the key)")
four, lanczos = errors["4 probes a pass"], errors["Lanczos, exact products"]
assert four[20] < (0.35 if QUICK else 0.27)
assert errors["10 probes a pass"][40] < (0.26 if QUICK else 0.22)
assert four[20] < 1.2 * lanczos[20]
assert abs(four[40] / lanczos[40] - 1) < 0.05
assert errors["all in one pass"][20] > 1.5 * four[20]

gradient = jax.jit(jax.grad(loss))
gradient_seconds = seconds(gradient, x, images, labels)
product_seconds = seconds(exact_products, x, vectors, images, labels, repeats=1) / len(vectors)
ratio = gradient_seconds / product_seconds
print(f"  a gradient takes {ratio:.2f} of the time of a product in a loop")

# %% [markdown]
# With 12 to 16 products, Lanczos is ahead; with 20, the error of 4 gradients a pass is within a
# tenth of it, and beyond there is nothing between the two (panel b). Yet a gradient takes less
# time than an exact product. On a quiet CPU it is half of it for one product, and 0.6 to 0.7 in a
# loop at one point, as in Lanczos, where XLA computes only once what all products share. And four
# gradients can run in parallel. For one cost, fewer probes in more passes are better.
#
# Beyond 20 products *all* methods gain slowly. The large eigenvalues are found, and what is left is
# spread over thousands of small ones. A few gradients tell the leading part, and no more.

# %% [markdown]
# ## 3. Does it tell how the loss looks around the point?
#
# `lrj.quadratic_model_at(loss, 4, passes=5)` takes 21 gradients and returns the loss's value, its
# gradient and `H_r` as one model,
#
#     m(s) = loss + <gradient, s> + <s, H_r s> / 2.
#
# We look at the plane through the point along the two leading eigenvectors of `H_r`, where the loss
# bends the most: the true loss on a grid, and what the model says (panel c). For comparison,
# there is a plane of two random directions as well.
#
# Along random directions next to nothing happens: out of 26,122, a few matter, and 21 gradients
# have found them. What the model misses is less than a tenth of the rise at a distance of 0.1, a
# fifth at 0.2 and a third at 0.4. A share that grows with the distance is the mark of third
# derivatives, which no quadratic model has.

# %%
GRID = np.linspace(-0.4, 0.4, 9 if QUICK else 21, dtype=np.float32)


@jax.jit
def landscape(model, directions, grid, images, labels):
    """The loss and the model's prediction at each point of the plane, both (rows, columns)."""

    def at(coordinates):
        step = coordinates @ directions
        return loss(model.center + step, images, labels), model.predict(step)

    plane = jnp.stack(jnp.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    return [values.reshape(len(grid), -1) for values in jax.lax.map(at, plane)]


model_at = lrj.quadratic_model_at(loss, 4, passes=5, batch_size=1)
model = model_at(x, images, labels, key=KEYS[0])
eigenvalues, eigenvectors = model.hessian.eigh()
true_loss, predicted = map(np.array, landscape(model, eigenvectors[:2], GRID, images, labels))
random_plane = jnp.linalg.qr(vectors[:2].T)[0].T
random_loss, _ = map(np.array, landscape(model, random_plane, GRID, images, labels))

say(f"3. the loss around the point; H_r of 21 gradients, error {four[20]:.2f}")
distances = np.hypot(*np.meshgrid(GRID, GRID))
leading = ", ".join(f"{s:.2f}" for s in eigenvalues[:5])
print(f"  loss at the point {model.value:.3f}; leading eigenvalues of H_r {leading}")
print("  largest over the plane, up to a distance of          0.1       0.2       0.4")
surprises = []
for title, values in {
    "rise of the loss, leading eigenvectors": true_loss - model.value,
    "  what the model misses of it": true_loss - predicted,
    "rise of the loss, random directions": random_loss - model.value,
}.items():
    row = [np.max(np.abs(values[distances <= radius + 1e-6])) for radius in (0.1, 0.2, 0.4)]
    surprises.append(row)
    print(f"  {title:46}" + "".join(f"{number:10.5f}" for number in row))
rise, missed, random_rise = surprises
assert missed[0] < 0.2 * rise[0]
assert random_rise[2] < 0.01 * rise[2]

# %% [markdown]
# ## 4. Does it work where JAX has no second derivative?
#
# Many functions have a gradient and no more: a simulator in another language, a solver with a
# hand-written adjoint, a custom kernel. Here is a chain of beads in one dimension. The bond
# between two neighbours costs `k (1 - e^-d)^2` when stretched by d, and bonds get softer along the
# chain. But in the middle, one stiff bond is about to break: stretched that far it pulls less the
# longer it gets, a *negative* curvature. The energy and its gradient are computed in NumPy. To
# JAX they are a `jax.pure_callback`, with a rule for the first derivative, `jax.custom_vjp`.
#
# `lrj.hvp` differentiates twice and can't. `lrj.lowrank_hessian` only asks for gradients, and
# finds the bond. The truth is the closed form of the Hessian, with pencil and paper.
#
# (A gradient that JAX cannot even trace, and one that comes without a loss, like a field of forces,
# is for `lrj.lowrank_hessian_from_gradient`.)

# %%
BEADS = len(small_x)  # the fit is compiled for this number already
chain, moved = bead_chain(BEADS)


def simulated(moved):
    """Energy and gradient, computed by NumPy."""

    def both(moved):
        return np.float32(chain.energy(moved)), np.float32(chain.gradient(moved))

    shapes = jax.ShapeDtypeStruct((), np.float32), jax.ShapeDtypeStruct((BEADS,), np.float32)
    return jax.pure_callback(both, shapes, moved, vmap_method="sequential")


@jax.custom_vjp
def energy(moved):
    return simulated(moved)[0]


energy.defvjp(simulated, lambda gradient, cotangent: (cotangent * gradient,))
say(f"4. a simulator behind a callback, {BEADS} beads")
try:
    lrj.hvp(energy)(moved, np.ones(BEADS, np.float32))
    refused = False
except (TypeError, ValueError) as error:
    refused = True
    print(f"  lrj.hvp: {type(error).__name__}: {str(error).split('.')[0]}.")
assert refused

h = lrj.lowrank_hessian(energy, 4, passes=5, batch_size=1)(moved, key=KEYS[0])
chain_found = by_magnitude(h.eigenvalues())
chain_exact = by_magnitude(np.linalg.eigvalsh(chain.hessian(moved)))
print(f"  {'eigenvalues, exact':30}" + "".join(f"{s:8.1f}" for s in chain_exact[:8]))
print(f"  {'lowrank_hessian, 21 gradients':30}" + "".join(f"{s:8.1f}" for s in chain_found[:8]))
assert np.all(np.abs(chain_found[:5] / chain_exact[:5] - 1) < 0.02)
assert np.min(chain_found[:8]) < 0

# %% [markdown]
# ## 5. How sharp is the curvature during training, and can one train against it?
#
# The largest eigenvalue, the *sharpness*, says how long a gradient step may be: on a quadratic
# loss, steps larger than 2 / sharpness overshoot more and more. `lrj.top_eigenpair(loss)` finds
# it to rounding, by Lanczos with exact products and restarts.
#
# What is more, it is differentiable. The derivative of an eigenvalue along `dH` is `w^T dH w`,
# w its eigenvector: it takes no memory of the search, and no linear solve (that of w takes one). So
# `jax.grad` goes through, and one can descend on `loss + c * sharpness`. We take one step down
# the gradient of the loss, and one of the same length down that of the loss with the penalty.
#
# Without the penalty, the sharpness hardly changes. With it, it falls nine times as much. It is a
# trade: on the first quarter of the step the loss falls as well, and rises later on (panel f).

# %%
PENALTY, LENGTHS = 0.01, np.linspace(0, 0.1, 5)
top_key = jax.random.key(4)


@jax.jit
def loss_and_top(x, images, labels):
    eigenvalue, *_ = lrj.top_eigenpair(loss)(x, images, labels, key=top_key)
    return loss(x, images, labels), eigenvalue


@jax.jit
@jax.grad
def penalised_gradient(x, images, labels):
    sharpness, *_ = lrj.top_eigenpair(loss)(x, images, labels, key=top_key)
    return loss(x, images, labels) + PENALTY * sharpness


say("5. sharpness during training")
training = np.array([loss_and_top(point, images, labels) for point in path])  # (6, 2)
print(f"  {'step of Adam':30}" + "".join(f"{20 * i:8}" for i in range(len(path))))
for title, row in zip(("loss", "sharpness"), training.T, strict=True):
    print(f"  {title:30}" + "".join(f"{number:8.3f}" for number in row))
print(f"  leading eigenvalue of H_r from 21 gradients, at step 100: {eigenvalues[0]:.3f}")
assert abs(eigenvalues[0] / training[-1, 1] - 1) < 0.02

descents = {}
for name, g in {
    "loss": gradient(x, images, labels),
    "loss + penalty": penalised_gradient(x, images, labels),
}.items():
    points = [x - length * g / jnp.linalg.norm(g) for length in LENGTHS[1:]]
    values = [loss_and_top(point, images, labels) for point in points]
    descents[name] = np.array([training[-1], *values])  # loss and sharpness at each length
    print(f"  {f'down the {name}: length':>45}" + "".join(f"{t:8.3f}" for t in LENGTHS))
    for title, row in zip(("loss", "sharpness"), descents[name].T, strict=True):
        print(f"  {title:>45}" + "".join(f"{number:8.4f}" for number in row))
falls = {name: curve[0, 1] - curve[-1, 1] for name, curve in descents.items()}
assert falls["loss + penalty"] > 4 * abs(falls["loss"])
assert descents["loss + penalty"][1, 0] < training[-1, 0] + 1e-3

# %% [markdown]
# ## What it looks like


# %%
def draw_spectrum(ax):
    """Magnitudes of eigenvalues of the small network; hollow where negative."""
    series = {"exact": (exact_values, GREY, 8)}
    for (name, values), color in zip(found_values.items(), (BLUE, RED), strict=True):
        series[name] = values, color, 5.5
    for label, (values, color, size) in series.items():
        values = values[:40]
        numbers = np.arange(1, len(values) + 1)
        for kept, fill in ((values > 0, color), (values < 0, "white")):
            style = {"color": color, "mfc": fill, "ms": size}
            ax.plot(numbers[kept], np.abs(values[kept]), "o", **style)
        ax.plot([], [], "o", color=color, ms=size, label=label)
    ax.plot([], [], "o", color="k", mfc="white", ms=5.5, label="negative")
    ax.set_yscale("log")
    plain_ticks(ax.yaxis, [0.001, 0.01, 0.1, 1])
    ax.set(xlim=(0, 41), ylim=(5e-4, 8), xticks=[1, 10, 20, 30, 40])
    ax.legend(loc="lower left")
    ax.set_title(f"a. Eigenvalues from 21 gradients\n({len(small_x)} parameters)")
    ax.set(xlabel="number of the eigenvalue", ylabel="magnitude of the eigenvalue")


def draw_errors(ax):
    """The error of H_r over the number of products."""
    styles = {name: ("o-", color) for name, color in zip(errors, (RED, BROWN, BLUE), strict=False)}
    for name, curve in errors.items():
        line, color = styles.get(name, ("--", "#222222"))
        ax.plot(curve.keys(), curve.values(), line, color=color, lw=2.5, ms=7, label=name)
    ax.set_yscale("log")
    plain_ticks(ax.yaxis, [0.2, 0.3, 0.5, 1])
    ax.set(xlim=(0, 41), ylim=(0.17, 1.05), xticks=[0, 10, 20, 30, 40])
    ax.legend(loc="upper right")
    ax.set_title(f"b. Relative error of $H_r$\n({len(x):,} parameters)")
    ax.set(
        xlabel="gradient differences, or exact products $H v$", ylabel="$|H_r - H|_F\\;/\\;|H|_F$"
    )


def draw_landscape(ax):
    """The loss in the plane of the two leading eigenvectors, and the model's contours."""
    levels = float(model.value) + np.array([0.02, 0.06, 0.12, 0.2, 0.3])
    top = max(true_loss.max(), predicted.max())
    filled = [min(true_loss.min(), predicted.min()), *levels, top]
    ax.contourf(GRID, GRID, true_loss, filled, cmap="Greys", alpha=0.45)
    ax.contour(GRID, GRID, true_loss, levels, colors="#555555", linewidths=1.5)
    ax.contour(GRID, GRID, predicted, levels, colors=RED, linewidths=1.5, linestyles="dashed")
    ax.plot(0, 0, "o", color="k", ms=7)
    numbers = ", ".join(f"{level:.2f}" for level in levels)
    ax.plot([], [], color="#555555", lw=1.5, label=f"loss {numbers}")
    ax.plot([], [], "--", color=RED, lw=1.5, label="the same of the model from 21 gradients")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13))
    ax.set(aspect="equal", xticks=[-0.4, -0.2, 0, 0.2, 0.4], yticks=[-0.4, -0.2, 0, 0.2, 0.4])
    ax.set_title("c. The loss along the two leading\neigenvectors of $H_r$")
    ax.set(xlabel="along the first eigenvector", ylabel="along the second")


def draw_chain(ax):
    """Eigenvalues of the chain, signed."""
    numbers = np.arange(1, 17)
    ax.bar(numbers, chain_exact[:16], color="#b4bac4", label="exact")
    label = "from 21 gradients of a callback"
    ax.plot(numbers, chain_found[:16], "o", color=RED, ms=7, label=label)
    ax.axhline(0, color="#555555", lw=0.8)
    ax.text(3.8, -110, "the bond about\nto break", va="center")
    ax.set(xlim=(0, 17), xticks=[1, 4, 8, 12, 16])
    ax.legend(loc="upper right")
    ax.set_title("d. Eigenvalues where JAX has\nno second derivative")
    ax.set(xlabel="number of the eigenvalue", ylabel="eigenvalue")


def draw_sharpness(ax):
    """The sharpness during training."""
    steps = 20 * np.arange(len(path))
    ax.plot(steps, training[:, 1], "o-", color=RED, lw=2.5, ms=7)
    for step, (value, sharpness) in zip(steps, training, strict=True):
        ax.annotate(
            f"loss {value:.2f}", (step, sharpness), (6, 8), textcoords="offset points", fontsize=12
        )
    ax.set(xlim=(-3, 118), ylim=(0, 12), xticks=steps)
    ax.set_title("e. The largest eigenvalue\nduring training with Adam")
    ax.set(xlabel="step of Adam", ylabel="sharpness")


def draw_descents(ax):
    """Loss and sharpness along the two steps."""
    for (name, curve), color in zip(descents.items(), (GREY, RED), strict=True):
        ax.plot(*curve.T, "o-", color=color, lw=2.5, ms=7, label=f"down the {name}")
    ax.plot(*training[-1], "o", color="k", ms=9)
    ax.annotate("after training", training[-1], (12, 0), textcoords="offset points", va="center")
    ax.legend(loc="lower left")
    ax.set_title("f. One step, with and without a penalty\n(dots: every quarter of its length)")
    ax.set(xlabel="loss", ylabel="sharpness")


say("drawing ...")
PANELS = draw_spectrum, draw_errors, draw_landscape, draw_chain, draw_sharpness, draw_descents
figure, axes = notebook.panels("ab\ncd\nef", (13, 16))
for panel, draw in zip("abcdef", PANELS, strict=True):
    draw(axes[panel])
notebook.save(figure, "curvature_at_a_point.png")

# %% [markdown]
# ## Limits
#
# * **A few gradients tell the leading eigenvalues.** The others may be thousands; together they
#   are the error of 0.2 that is left here, and the sign of a small eigenvalue of `H_r` means
#   nothing. Where no eigenvalue stands out, few gradients tell little.
# * **The curvature is that of one point.** It changes on the way: here a quadratic model is good
#   for a distance of about 0.1 along the leading eigenvectors.
# * **The probes are random.** Another key gives another error, most of all with few products.
# * **Gradient differences have a step.** Its length is measured, which costs a few gradients more,
#   and no length is good at a kink or with much noise: there an exact product helps, where it
#   exists (`lrj.lowrank_from_product`).
# * **One step is no training.** That the sharpness can be pushed down does not say that the network
#   reads other digits better. And `lrj.top_eigenpair` needs second derivatives, its gradient
#   third ones.
