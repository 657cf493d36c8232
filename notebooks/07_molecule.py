# %% [markdown]
# # A molecule: vibrations, zero modes and a transition state, from forces in NumPy
#
# Thirteen atoms that attract and repel each other by a Lennard-Jones potential sit in an
# icosahedron, the best that they can do. Three questions about them:
#
# 1. How do they vibrate, and which motions cost nothing?
# 2. Over which pass does the cluster leave its shape?
# 3. How many evaluations of the forces does that take, beside the usual methods?
#
# The forces are plain NumPy, as they would be another program's: JAX cannot trace them, and there
# is no second derivative. Whatever is found is held against the Hessian with pencil and paper,
# which no search below may use. Molecules want double precision.

# %%
import sys
from pathlib import Path

sys.path += map(str, Path(globals().get("__file__", "here")).resolve().parents)  # for benchmarks/

import jax
import numpy as np
import scipy.optimize

jax.config.update("jax_enable_x64", True)

import lowrank_jax as lrj
from benchmarks import notebook
from benchmarks.notebook import BLUE, GREY, QUICK, RED, say

ATOMS = 13


def atoms_and_gaps(x):
    """All differences of positions, (atoms, atoms, 3), and the sixth power of 1 / distance."""
    atoms = x.reshape(-1, 3)
    gaps = atoms[:, None] - atoms[None]
    squares = np.sum(gaps**2, axis=-1) + np.eye(len(atoms))
    return gaps, squares, squares**-3 * (1 - np.eye(len(atoms)))


def energy(x):
    """The sum of 4 (1 / r^12 - 1 / r^6) over all pairs."""
    _, _, sixth = atoms_and_gaps(x)
    return 2 * np.sum(sixth**2 - sixth)


def gradient(x):
    """Minus the forces; counted."""
    gradient.calls += 1
    gaps, squares, sixth = atoms_and_gaps(x)
    slopes = (24 * sixth - 48 * sixth**2) / squares
    return np.sum(slopes[..., None] * gaps, axis=1).ravel()


gradient.calls = 0


def counted(function, *args, **options):
    """What a function returns, and how many gradients it took."""
    before = gradient.calls
    return function(*args, **options), gradient.calls - before


def exact_hessian(x):
    """With pencil and paper: for each pair a block of -(a I + b r r^T), r their difference."""
    gaps, squares, sixth = atoms_and_gaps(x)
    a = (24 * sixth - 48 * sixth**2) / squares
    b = (672 * sixth**2 - 192 * sixth) / squares**2
    blocks = (
        a[..., None, None] * np.eye(3)
        + b[..., None, None] * gaps[..., :, None] * gaps[..., None, :]
    )
    n = len(a)
    off = -blocks.transpose(0, 2, 1, 3)
    off[np.arange(n), :, np.arange(n)] += np.sum(blocks, axis=1)
    return off.reshape(3 * n, 3 * n)


def relative_error(found, exact):
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


# %% [markdown]
# ## 1. Vibrations and zero modes
#
# An icosahedron is relaxed by SciPy. `lrj.lowrank_hessian_from_gradient(gradient, 13, passes=3)`
# takes 39 steps, as many as there are coordinates, so that the whole Hessian is found; the length
# of the steps is measured by 17 more. Central differences take 78 gradients, and their length is
# a guess (1e-3 here, which is a good one).
#
# `inertia` counts the eigenvalues that are positive, negative and zero. Shifts and rotations of the
# cluster cost nothing: there have to be six of them.

# %%
GOLDEN = (1 + 5**0.5) / 2
corners = np.array([[0, s, t * GOLDEN] for s in (1, -1) for t in (1, -1)])
shell = np.concatenate([corners, corners[:, [1, 2, 0]], corners[:, [2, 0, 1]]])
icosahedron = np.append(1.1 * shell / np.linalg.norm(shell[0]), np.zeros(3))
minimum = scipy.optimize.minimize(energy, icosahedron, jac=gradient, options={"gtol": 1e-9}).x


def central_differences(x, step):
    rows = [gradient(x + step * e) - gradient(x - step * e) for e in np.eye(len(x))]
    return np.array(rows) / (2 * step)


say(f"1. vibrations about the minimum, energy {energy(minimum):.6f}")
hessian_at = lrj.lowrank_hessian_from_gradient(gradient, 13, passes=3, return_pairs=True)
(h, pairs), count = counted(hessian_at, minimum, key=jax.random.key(0))
by_differences, count_of_differences = counted(central_differences, minimum, 1e-3)
at_minimum = exact_hessian(minimum)
errors = relative_error(h.to_dense(), at_minimum), relative_error(by_differences, at_minimum)
inertia = [int(n) for n in h.inertia()]
print(f"  {'':34}{'gradients':>10}{'error':>10}")
print(f"  {'lowrank_hessian_from_gradient':34}{count:10}{errors[0]:10.0e}")
print(f"  {'central differences':34}{count_of_differences:10}{errors[1]:10.0e}")
print("  positive, negative and zero eigenvalues: {}, {}, {}".format(*inertia))
print("  vibrations, the square roots of the eigenvalues, and how often they occur:")
frequencies = np.sqrt(np.sort(np.asarray(h.eigenvalues()))[6:])
for value, times in zip(*np.unique(frequencies.round(2), return_counts=True), strict=True):
    print(f"    {value:6.2f}  x {times}")
assert inertia == [33, 0, 6]
assert errors[0] < 1e-5
assert count < count_of_differences

# %% [markdown]
# ## 2. A transition state
#
# A cluster changes its shape over a saddle: a point without forces whose Hessian has one negative
# eigenvalue. Eigenvector following finds it from the minimum: pushed a little along a soft
# vibration, the cluster is led uphill along the lowest eigenvector of the Hessian and downhill
# along all others, by steps of length 0.2 at most. It needs the Hessian at each step. There are
# three ways:
#
# * **afresh**, by 78 gradients at each step;
# * **Bofill's update**, the usual one: the old Hessian is corrected so that it satisfies the last
#   pair `H s = y`, by a mixture of Powell's symmetric and the symmetric rank-one formula;
# * **`lrj.fit(pair, base=h)`**, a change of the old Hessian that satisfies the pair, the least one
#   at `extrapolate=0` and extrapolated here. The pair is `(s[None], y[None])`: rows come first.
#   `truncate` keeps the number of factors, so nothing is compiled anew after the second step.
#
# The updates begin with the Hessian of part 1. All three take the same steps from the same start.


# %%
def rigid_motions(x):
    """An orthonormal basis of shifts and rotations, (3 atoms, 6)."""
    atoms = x.reshape(-1, 3) - np.mean(x.reshape(-1, 3), axis=0)
    shifts = [np.tile(e, len(atoms)) for e in np.eye(3)]
    turns = [np.cross(e, atoms).ravel() for e in np.eye(3)]
    return np.linalg.qr(np.stack(shifts + turns).T)[0]


def saddle_step(hessian, slope, x, radius):
    """Uphill along the lowest vibration, a Newton step along all others."""
    rigid = rigid_motions(x)
    inner = np.eye(len(x)) - rigid @ rigid.T
    values, u = np.linalg.eigh(inner @ hessian @ inner + 1e4 * rigid @ rigid.T)
    step = -(u.T @ slope) / np.maximum(np.abs(values), 1e-2)
    step = u @ np.append(-step[0], step[1:])
    return step * min(1, radius / np.linalg.norm(step))


def afresh(hessian, s, y, x):
    return central_differences(x, 1e-3)


def bofill(hessian, s, y, x):
    missed = y - hessian @ s
    across = missed @ s
    powell = (np.outer(missed, s) + np.outer(s, missed)) / (s @ s)
    powell -= across * np.outer(s, s) / (s @ s) ** 2
    share = across**2 / (missed @ missed) / (s @ s)
    return hessian + share * np.outer(missed, missed) / across + (1 - share) * powell


def least_change(hessian, s, y, x):
    return lrj.fit((s[None], y[None]), base=hessian).truncate(3 * ATOMS)


def search(start, hessian, update):
    """The saddle, and the norm of the gradient after so many gradients."""
    x, slope = start, gradient(start)
    before, path = gradient.calls, []
    for _ in range(100):
        dense = np.asarray(hessian.to_dense() if hasattr(hessian, "to_dense") else hessian)
        step = saddle_step((dense + dense.T) / 2, slope, x, radius=0.2)
        x, last = x + step, slope
        slope = gradient(x)
        path.append((gradient.calls - before, np.linalg.norm(slope)))
        if path[-1][1] < 1e-6:
            return x, np.array(path)
        hessian = update(hessian, step, slope - last, x)
    raise RuntimeError("no saddle within 100 steps")


start_hessian = h.truncate(3 * ATOMS)
METHODS = {
    "a fresh Hessian at each step": (afresh, np.asarray(start_hessian.to_dense())),
    "Bofill's update": (bofill, np.asarray(start_hessian.to_dense())),
    "fit(pair, base=h)": (least_change, start_hessian),
}
soft = np.linalg.eigh(at_minimum)[1][:, 6:11]  # the five softest vibrations
pushes = np.random.default_rng(0).normal(size=(2 if QUICK else 8, 5))
starts = [minimum + 0.1 * soft @ push / np.linalg.norm(push) for push in pushes]

say(f"2. transition states from {len(starts)} starts: gradients, after those of the first Hessian")
searches = {
    name: [search(start, hessian, update) for start in starts]
    for name, (update, hessian) in METHODS.items()
}
totals = {}
for name, results in searches.items():
    counts = [int(path[-1, 0]) for _, path in results]
    totals[name] = sum(counts)
    print(f"  {name:30}" + "".join(f"{n:6}" for n in counts) + f"   together {totals[name]}")
saddles = [saddle for results in searches.values() for saddle, _ in results]
lowest = np.array([np.linalg.eigvalsh(exact_hessian(x))[:8] for x in saddles])
energies = [energy(x) for x in saddles]
print(f"  energies of all saddles {min(energies):.6f} to {max(energies):.6f},")
print(f"  their eigenvalues by the closed form: {lowest[0].round(2) + 0.0}")
assert np.all(lowest[:, 0] < -1)
assert np.all(np.abs(lowest[:, 1:7]) < 1e-4)
assert np.all(lowest[:, 7] > 1)
fresh, usual, ours = totals.values()
assert ours <= 1.05 * usual < fresh / 28

# %% [markdown]
# Each search ends at a saddle: the closed form has one negative eigenvalue there, six zeros, and no
# other below 1. The two updates need about as many gradients as each other (the fit a few percent
# fewer, over these eight starts) and less than a thirtieth of those of fresh Hessians. The step of
# 0.2 matters more than the update: with 0.3 both lose the way now and then.
#
# ## 3. What lies on the other side?
#
# From the saddle the cluster rolls down along the negative eigenvector, one way or the other. The
# eigenvector is that of a new `lowrank_hessian_from_gradient` at the saddle; the descents are
# SciPy's.

# %%
say("3. down from the saddle")
saddle = searches["fit(pair, base=h)"][0][0]
at_saddle, _ = hessian_at(saddle, key=jax.random.key(1))
values, vectors = at_saddle.eigh()
(negative,) = np.flatnonzero(np.asarray(values) < -1e-3)
down = np.asarray(vectors[negative])
exact_down = np.linalg.eigh(exact_hessian(saddle))[1][:, 0]
cosine = abs(down @ exact_down)
print(
    f"  negative eigenvalue {values[negative]:.4f}, cosine with the exact eigenvector {cosine:.6f}"
)
assert cosine > 0.9999


def descend(x):
    """Steepest descent by small steps: the last point, the length of the way, the energies."""
    way, heights = [0.0], [energy(x)]
    while np.linalg.norm(slope := gradient(x)) > 1e-4:
        step = -slope * min(2e-3, 0.02 / np.linalg.norm(slope))
        x = x + step
        way.append(way[-1] + np.linalg.norm(step))
        heights.append(energy(x))
    return x, np.array(way), np.array(heights)


def contacts(x):
    """Which atoms touch each other, (atoms, atoms)."""
    _, squares, _ = atoms_and_gaps(x)
    return (squares < 1.35**2) & ~np.eye(ATOMS, dtype=bool)


descents = [descend(saddle + sign * 0.02 * down) for sign in (-1, 1)]
exchanged = [np.sum(contacts(end) & ~contacts(minimum)) // 2 for end, _, _ in descents]
barrier = energy(saddle) - energy(minimum)
print(f"  contacts at the minimum {np.sum(contacts(minimum)) // 2}, barrier {barrier:.4f}")
for (end, way, _), count_of_new in zip(descents, exchanged, strict=True):
    print(f"  down to {energy(end):.4f} on a way of {way[-1]:.2f}, {count_of_new} new contacts")
    assert abs(energy(end) - energy(minimum)) < 1e-6
assert sorted(exchanged) == [0, 5]

# %% [markdown]
# One way leads back to where it came from. The other leads to an icosahedron as well: the shape is
# the same, but 5 of its 42 contacts are new ones. The atoms of the shell have changed places.
#
# ## What it looks like

# %%
figure, axes = notebook.panels("abc", (19, 5.5))
lrj.plot.spectrum(h, pairs, ax=axes["a"])
exact_values = np.sort(np.linalg.eigvalsh(at_minimum))[::-1][:33]
axes["a"].plot(range(1, 34), exact_values, "k_", ms=9, label="closed form")
axes["a"].annotate("six motions\nthat cost nothing", (33, 1e-4), ha="right", va="center")
axes["a"].legend(loc="lower left")
axes["a"].set_title("a. Hessian at the minimum,\nfrom gradients alone")

for (name, results), color in zip(searches.items(), (GREY, BLUE, RED), strict=True):
    axes["b"].plot(*results[0][1].T, "o-", color=color, ms=4, lw=2, label=name)
axes["b"].set(xscale="log", yscale="log", xlabel="gradients", ylabel="norm of the gradient")
axes["b"].legend(loc="lower left")
axes["b"].set_title("b. The search for a saddle,\nfrom the first of the starts")

for (_, way, heights), sign, color in zip(descents, (-1, 1), (BLUE, RED), strict=True):
    axes["c"].plot(sign * way, heights, color=color, lw=2.5)
    axes["c"].plot(sign * way[-1], heights[-1], "o", color=color, ms=9)
axes["c"].plot(0, energy(saddle), "o", color="k", ms=9)
axes["c"].annotate("saddle", (0, energy(saddle)), (10, 0), textcoords="offset points", va="center")
for (_, way, _), sign, count_of_new in zip(descents, (-1, 1), exchanged, strict=True):
    text = f"{count_of_new} of 42\ncontacts new"
    axes["c"].text(sign * way[-1], energy(minimum) - 0.25, text, ha="center", va="top")
axes["c"].set_ylim(energy(minimum) - 1, None)
axes["c"].set(xlabel="length of the way from the saddle", ylabel="energy")
axes["c"].margins(0.15)
axes["c"].set_title("c. Down from the saddle,\nto either side")
notebook.save(figure, "molecule.png")

# %% [markdown]
# ## Limits
#
# * **13 atoms.** In 39 dimensions the whole Hessian is 40 gradients. Of a larger cluster one asks
#   for the stiffest motions only, and those are what few gradients find: its softest ones, which
#   chemists like best, are the last to be found.
# * **The count is of one cluster and one pass.** On other surfaces either update may be ahead.
# * **An update knows nothing of the first Hessian's error**, and old pairs mislead where the
#   Hessian changes fast: here the last pair alone does better than the last few together.
