# %% [markdown]
# # What is curvature good for in a training run, and what does it cost?
#
# A training run computes a gradient at every step, and two gradients tell how the gradient
# changes along the step between them. Three questions:
#
# 1. Can the sharpness be read off a run's own gradients, for free? Sometimes, and there
#    is a test that tells when.
# 2. On ill-conditioned problems, how many gradients and how much time does an optimiser with
#    curvature need, beside Adam, SGD with momentum, and L-BFGS?
# 3. How are these optimisers used with mini-batches, and with modules of flax and equinox?

# %%
import json
import sys
from pathlib import Path

sys.path += map(str, Path(globals().get("__file__", "here")).resolve().parents)  # for benchmarks/

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree

import lowrank_jax as lrj
from benchmarks import notebook
from benchmarks.notebook import BLUE, BROWN, GREEN, GREY, QUICK, RED, plain_ticks, say
from benchmarks.problems import digits, init_mlp, mean_loss
from lowrank_jax import history, optim

# %% [markdown]
# ## 1. Sharpness from a run's own gradients
#
# A network 64-128-128-10 learns to read scikit-learn's digits. `history` keeps the last 20 steps
# and gradient differences, in a state of fixed shapes that travels with the parameters through
# `jax.lax.scan`. Every 20 steps we fit an operator to them and compare its
# largest eigenvalue with the exact one, which `lrj.top_eigenpair` finds with Hessian-vector
# products.
#
# Each optimiser runs twice. *Full batch*: the gradient over all 1797 images, and the history is
# fed with what is there already. *Mini-batches* of 256: both gradients of a pair must be of the
# same batch, or their difference is mostly the noise between batches. So the new batch's
# gradient at the old point is pushed first: a second gradient a step, though a small one.

# %%
STEPS, EVERY, BATCH, SIZE = 60 if QUICK else 200, 20, 256, 20
images, labels = digits()
start, unravel = ravel_pytree(init_mlp(jax.random.key(0)))
OPTIMIZERS = {
    "Adam": optax.adam(1e-3),
    "SGD, momentum 0.9": optax.sgd(0.05, momentum=0.9),
    "SGD": optax.sgd(0.1),
}


@jax.jit
def loss(x, images, labels):
    return mean_loss(unravel(x), images, labels)


def full_batch(past, x, key):
    """The gradient at x, and the history with it."""
    grad = jax.grad(loss)(x, images, labels)
    return history.push(past, x, grad), grad


def mini_batch(past, x, key):
    """The same on a random batch, where the last point's gradient is taken once more."""
    chosen = jax.random.choice(key, len(images), (BATCH,), replace=False)
    gradient = jax.grad(lambda x: loss(x, images[chosen], labels[chosen]))
    old = jnp.where(past.points > 0, past.params, x)
    past = history.push(past, old, gradient(old))
    grad = gradient(x)
    return history.push(past, x, grad), grad


BATCHES = {full_batch: "full batch", mini_batch: "mini-batches"}


def trainer(optimizer, observe):
    """EVERY steps as one jitted function."""

    def step(carry, key):
        x, state, past = carry
        past, grad = observe(past, x, key)
        updates, state = optimizer.update(grad, state, x)
        return (optax.apply_updates(x, updates), state, past), None

    return jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0])


# %% [markdown]
# A fit has to guess what the pairs do not tell, and how much it guesses is its option
# `extrapolate`. So we fit twice: with 0, which assumes no curvature outside the steps and
# mostly finds too little, and with the default 2/3. Where the two agree, little was
# guessed. They may agree on something wrong, if the curvature changed on the way; that shows in
# `leave_one_out` of `lrj.diagnose`, the relative error with which 19 pairs predict the twentieth.
# The test, a heuristic: **trust the sharpness if both fits agree within a factor of 1.5 and
# leave-one-out is below 0.5.** We then take the geometric mean of the two.
#
# `rtol` drops directions in which the steps hardly differ. With mini-batches these are mostly
# noise (`lrj.choose_rtol` finds a value from the pairs; it mostly says 0.01 here, or 0.1). The
# smooth gradients of the full batch need all directions: 0 keeps also those that the rounding of
# the steps exceeds, which a fit drops unless it is told otherwise.


# %%
def largest(hessian):
    """The eigenvalue of largest magnitude."""
    values = hessian.eigenvalues()
    return values[jnp.argmax(jnp.abs(values))]


@jax.jit
def read(past, rtol):
    """The eigenvalue of largest magnitude of both fits, and the leave-one-out error."""
    pairs = history.pairs(past)

    def fit(extrapolate):
        return lrj.fit(pairs, extrapolate=extrapolate, rtol=rtol)

    low, high = jax.lax.map(lambda extrapolate: largest(fit(extrapolate)), jnp.array([0, 2 / 3]))
    return low, high, lrj.diagnose(fit(2 / 3), pairs).leave_one_out


@jax.jit
def exact(x):
    return lrj.top_eigenpair(loss)(x, images, labels, key=jax.random.key(0))[0]


def agree(low, high, left_out):
    return low > 0 and 1 / 1.5 < high / low < 1.5 and left_out < 0.5


say(f"1. sharpness during {STEPS} steps, {len(start)} parameters, {SIZE} pairs")
SHOWN = (20, 40, 60) if QUICK else (40, 80, 120, 160, 200)
readings = {}
for observe, rtol in ((full_batch, 0.0), (mini_batch, 0.01)):
    for name in ["SGD"] if QUICK else OPTIMIZERS:
        optimizer = OPTIMIZERS[name]
        advance = trainer(optimizer, observe)
        carry = start, optimizer.init(start), history.init(start, SIZE)
        rows = []
        for key in jax.random.split(jax.random.key(1), STEPS // EVERY):
            carry = advance(carry, jax.random.split(key, EVERY))
            found = [float(v) for v in read(carry[-1], rtol)]
            rows.append((*found, float(exact(carry[-1].params))))
        readings[name, observe] = np.array(rows)
        low, high, left_out, true = readings[name, observe].T
        print(f"  {name}, {BATCHES[observe]}")
        print(f"    {'after steps':28}" + "".join(f"{step:9}" for step in SHOWN))
        picked = [step // EVERY - 1 for step in SHOWN]
        lines = {"exact": true, "extrapolate 0": low, "extrapolate 2/3": high}
        for label, values in (lines | {"leave-one-out error": left_out}).items():
            print(f"    {label:28}" + "".join(f"{values[i]:9.2f}" for i in picked))
        verdict = ["yes" if agree(*rows[i][:3]) else "no" for i in picked]
        print(f"    {'trusted':28}" + "".join(f"{word:>9}" for word in verdict), flush=True)

# %% [markdown]
# Of all readings, how many pass the test, and how far off are those that do?

# %%
every = np.concatenate(list(readings.values()))
trusted = np.array([agree(*row[:3]) for row in every])
middle = np.sqrt(np.abs(every[:, 0] * every[:, 1]))
off = np.abs(middle / every[:, 3] - 1)
default_off = np.abs(every[:, 1] / every[:, 3] - 1)
say(f"trusted: {trusted.sum()} of {len(trusted)} readings, and off from the exact sharpness by")
print(f"    {'':44}{'median':>8}{'worst':>8}")
for label, errors in {
    "trusted, geometric mean of both fits": off[trusted],
    "not trusted, geometric mean of both fits": off[~trusted],
    "all, the default fit alone": default_off,
}.items():
    print(f"    {label:44}{100 * np.median(errors):7.0f}%{100 * errors.max():7.0f}%")
assert trusted.sum() >= len(trusted) / 4
assert off[trusted].max() < 0.35
assert np.median(off[~trusted]) > 2 * np.median(off[trusted])

# %% [markdown]
# A smooth run moves in few directions: plain SGD on the full batch slides along a valley and hardly
# ever steps across it, where the curvature is strong. It cannot know the sharpness, and the test
# says so. Mini-batches make the same optimiser the best case, as their noise moves it in all
# directions of strong curvature; but then the second gradient is a price, so that this
# sharpness is cheap rather than free.
#
# The thresholds of the test were chosen on these runs. On two other networks (64-32-32-10 and
# 64-100-10, with other learning rates, batches and seeds) it trusted 25 of 60 and 40 of 120
# readings; these were off by 17 and 6 percent in the median, and by 51 and 74 percent at
# worst, those that it did not trust by up to a factor of 20. It tells good from bad, and is no
# guarantee.

# %% [markdown]
# ## 2. Ill-conditioned problems
#
# Four problems; all figures come from `python -m benchmarks.run --problems training`, which
# takes minutes and writes the file that is read here.
#
# * **Least squares** in 100 unknowns whose Hessian has eigenvalues from 1 to 1e-6.
# * **Logistic regression** on scikit-learn's breast cancer data, with the 30 features
#   as they are: one varies 200,000 times as much as another.
# * **Physics-informed network**: 2-16-16-1, for Poisson's equation on a square.
# * **Autoencoder** of the digits, 64-24-6-24-64.
#
# The first three run in float64, so that rounding plays no part. Each method has 2,000 gradients,
# all counted: at the steps, in line searches, and for probes. Adam, SGD and
# `precondition_top_curvature` (around Adam) have the best of the learning rates 1e-4 ... 1 by
# half-decades. `secant_newton` and `optax.lbfgs` keep 20 pairs, need no rate, and search the line.
# The mark to reach is Adam's lowest loss.

# %%
PROBLEMS = {
    "least_squares": "least squares",
    "logistic": "logistic regression",
    "poisson": "physics-informed network",
    "autoencoder": "autoencoder",
}
RESULTS = Path(notebook.__file__).parent / "results/cpu/training.json"
results = json.loads(RESULTS.read_text())
problems = {title: results["problems"][name] for name, title in PROBLEMS.items()}
methods = list(problems["least squares"]["methods"])

say("2. from benchmarks/results: gradients to Adam's lowest loss, of 2,000")
for quantity, shown in {
    "gradients": lambda of: f"{of['to_adam'][0]}" if of["to_adam"] else "-",
    "seconds": lambda of: f"{of['to_adam'][1]:.3f}" if of["to_adam"] else "-",
    "lowest loss": lambda of: f"{of['lowest_loss']:.1e}",
}.items():
    print(f"  {quantity:28}" + "".join(f"{title:>26}" for title in problems))
    for method in methods:
        cells = [shown(problem["methods"][method]) for problem in problems.values()]
        print(f"  {method:28}" + "".join(f"{cell:>26}" for cell in cells))


def gradients_needed(problem, method):
    reached = problem["methods"][method]["to_adam"]
    return reached[0] if reached else np.inf


for title in list(problems)[:3]:  # not the autoencoder
    ours = [gradients_needed(problems[title], m) for m in methods[3:]]
    assert min(ours) <= gradients_needed(problems[title], "Adam") / 2, title

# %% [markdown]
# Read it so:
#
# * **Where the curvature is the difficulty, curvature pays**: on the first three problems
#   `secant_newton` and L-BFGS need a quarter of Adam's gradients or less, `secant_newton` fewer.
# * **A handful of stiff directions** is the case of `precondition_top_curvature`: the unscaled
#   features make one, and after a hundred gradients it is where Adam is after 2,000. Where the
#   eigenvalues spread evenly, as in the least squares, taking out ten of them helps little.
# * **The autoencoder is Adam's**: no method reaches its loss with half of its gradients, and
#   L-BFGS does not reach it at all within 2,000.
# * **Time is another matter.** A step of `secant_newton` itself takes longer than one of L-BFGS.
#   Where a gradient takes some microseconds, as in the first two problems, Adam or L-BFGS are done
#   first. It is for gradients worth saving.
# * L-BFGS is close behind in gradients and ahead in time, on every problem where it wins over
#   Adam. It stands on the same secant equations and is hard to beat.

# %% [markdown]
# ## 3. Recipes
#
# The optimisers take any pytree of arrays of real numbers. A module of flax nnx or equinox holds
# such arrays and other things: split it into the parameters and the rest, differentiate in
# the parameters, and put it together again inside the loss.
#
# **Full batch, a flax nnx module.** Without a learning rate `secant_newton` searches the line, and
# is called as `optax.lbfgs` is. (The steps are in a scan: the state of optax's line search
# changes its type after the first step, so that a jitted step would be compiled twice.)


# %%
def cross_entropy(scores, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels))


def report(name, losses):
    print(f"  {name:34}" + " ".join(f"{loss:.3f}" for loss in losses), flush=True)
    assert losses[-1] < losses[0] / 2


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.last = nnx.Linear(64, 16, rngs=rngs), nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.hidden(x)))


say("3. recipes: the loss during a few steps")
graph, params, rest = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)
optimizer = optim.secant_newton()


def full_loss(params):
    return cross_entropy(nnx.merge(graph, params, rest)(images), labels)


def search_step(carry, _):
    params, state = carry
    value, grad = optax.value_and_grad_from_state(full_loss)(params, state=state)
    extra = {"value": value, "grad": grad, "value_fn": full_loss}
    updates, state = optimizer.update(grad, state, params, **extra)
    return (optax.apply_updates(params, updates), state), value


@jax.jit
def search(params):
    return jax.lax.scan(search_step, (params, optimizer.init(params)), length=10)


(found, _), losses = search(params)
network = nnx.merge(graph, found, rest)  # the trained module
report("flax nnx, full batch", losses)

# %% [markdown]
# **Mini-batches, an equinox module.** With a learning rate there is no line search, and the call is
# that of any optax optimiser. `grad_fn` is the gradient function of the step's batch: with it
# both gradients of a pair come from one batch, for one more gradient a step. These batches are
# large, 256 images; on those of 32, two larger networks diverged (see *Performance*).

# %%
start_module = eqx.nn.MLP(
    64, 10, width_size=16, depth=1, activation=jnp.tanh, key=jax.random.key(0)
)
weights, static = eqx.partition(start_module, eqx.is_inexact_array)
batch_optimizer = optim.secant_newton(0.3)


def batch_loss(params, images, labels):
    return cross_entropy(jax.vmap(eqx.combine(params, static))(images), labels)


@jax.jit
def batch_step(params, state, key):
    chosen = jax.random.choice(key, len(images), (BATCH,), replace=False)

    def grad_fn(params):
        return jax.grad(batch_loss)(params, images[chosen], labels[chosen])

    updates, state = batch_optimizer.update(grad_fn(params), state, params, grad_fn=grad_fn)
    return optax.apply_updates(params, updates), state


state, batch_losses = batch_optimizer.init(weights), [batch_loss(weights, images, labels)]
for number, key in enumerate(jax.random.split(jax.random.key(2), 50), start=1):
    weights, state = batch_step(weights, state, key)
    if number % 10 == 0:
        batch_losses.append(batch_loss(weights, images, labels))
module = eqx.combine(weights, static)  # the trained module
report("equinox, mini-batches, every 10", batch_losses)

# %% [markdown]
# ## In one figure
#
# Top, the sharpness: exact, and as read from the history; filled where the test trusts it. Below,
# the four problems: the lowest loss so far against the gradients, and against the time.

# %%
COLORS = dict(zip(methods, (GREY, BROWN, BLUE, RED, GREEN), strict=True))


def draw_sharpness(ax, name, observe):
    """Sharpness during one run: a band between the two fits, and their geometric mean."""
    low, high, _, true = readings[name, observe].T
    steps = EVERY * np.arange(1, len(true) + 1)
    found = np.sqrt(np.abs(low * high))
    kept = np.array([agree(*row[:3]) for row in readings[name, observe]])
    ax.plot(steps, true, color=GREY, lw=3, label="exact")
    ax.fill_between(steps, np.abs(low), np.abs(high), color=RED, alpha=0.15, lw=0)
    ax.plot(steps[kept], found[kept], "o", color=RED, ms=8, label="trusted")
    ax.plot(steps[~kept], found[~kept], "o", color=RED, mfc="white", ms=8, label="not trusted")
    ax.set(yscale="log", ylim=(0.3, 100), xlim=(0, STEPS + 10), xlabel="step")
    plain_ticks(ax.yaxis, [0.3, 1, 3, 10, 30, 100])
    ax.set_title(f"Sharpness, {name},\n{BATCHES[observe]}")


def draw_problem(ax, title, against):
    """The lowest loss so far of all methods."""
    curves = problems[title]["methods"]
    for method in methods:
        curve = curves[method]["curve"]
        seen = np.array(curve[against]) > 0
        line = np.array(curve[against])[seen], np.array(curve["loss"])[seen]
        ax.plot(*line, color=COLORS[method], lw=2.5, label=method)
    ax.axhline(curves["Adam"]["lowest_loss"], color=GREY, lw=1, ls="--")
    ax.set(xscale="log", yscale="log", ylabel="lowest loss so far", title=title.capitalize())
    ax.set(xlabel="gradients" if against == "gradients" else "seconds, without compilation")
    low, high = ax.get_ylim()
    if high / low < 100:
        ticks = np.outer([0.01, 0.1, 1, 10], [1, 2, 5]).ravel()
        plain_ticks(ax.yaxis, ticks[(ticks > low) & (ticks < high)])


say("drawing ...")
top = ["AAABBB"] if QUICK else ["AABBCC", "DDEEFF"]
mosaic = [*top, "ggghhh", "iiijjj", "kkklll", "mmmnnn"]
figure, axes = notebook.panels("\n".join(mosaic), (14, 4 * len(mosaic)))
for panel, (name, observe) in zip("ABCDEF", readings, strict=False):
    draw_sharpness(axes[panel], name, observe)
axes["A"].legend(loc="upper right")
for (left, right), title in zip(("gh", "ij", "kl", "mn"), problems, strict=True):
    draw_problem(axes[left], title, "gradients")
    draw_problem(axes[right], title, "seconds")
axes["g"].legend(loc="lower left")
notebook.save(figure, "training.png", dpi=80)

# %% [markdown]
# ## Limits
#
# * **One learning rate for a whole run.** With schedules, Adam and SGD would do better.
# * **The problems are small**, and so are their gradients. What an optimiser costs beside
#   its gradients weighs less on large ones.
# * **Full batches**, but for the recipe: a line search needs the same loss at every step.
# * **Training loss only.** Nothing here says which minimum is the better one.
