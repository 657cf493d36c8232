"""Tables of the results in Markdown, for the README and the site.

    python -m benchmarks.tables

prints all of them and writes the README's. What a cell says is computed from `results/`: no figure
is written by hand.
"""

import itertools
import json
import re
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
ACCURATE, PEER = "lowrank", "lanczos 20"


def main() -> None:
    """Prints all tables, and puts the README's in its place."""
    for name, make in TABLES.items():
        print(f"\n{name}\n\n{make()}")
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n\n{readme()}\n\n{END}{after}")


def load(folder: Path = RESULTS / "cpu") -> dict[str, dict]:
    """All results of a platform, by problem. NumPy's QR is the faster of all threads and one."""
    results = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    for problem in {"solve", "clouds"} & set(results):
        for case in results[problem]["cases"].values():
            found = case["methods"]
            both = [found.pop(name) for name in ("numpy_qr", "numpy_qr 1 thread") if name in found]
            if both:
                found["numpy_qr"] = min(both, key=lambda of: of["seconds"])
    return results


def load_device(name: str = "nvidia-h200") -> dict:
    """What `make device` found on a device."""
    return json.loads((RESULTS / name / "device.json").read_text())


def only_case(results: dict, problem: str) -> dict:
    """The methods of a problem that has one case."""
    (case,) = results[problem]["cases"].values()
    return case["methods"]


def matching(methods: dict, peer: str = PEER) -> str:
    """Our fastest setting whose error is at most the peer's; our most accurate if none is."""
    ours = {name: of for name, of in methods.items() if name.startswith(ACCURATE)}
    reached = [name for name, of in ours.items() if of["error"] <= methods[peer]["error"]]
    if reached:
        return min(reached, key=lambda name: ours[name]["seconds"])
    return min(ours, key=lambda name: ours[name]["error"])


def spoken(label: str) -> str:
    """`4096 x 8 x 64` in words."""
    *batch, n, d = (int(part) for part in label.split(" x "))
    words = f"{n} pairs of {d:,}"
    return f"{batch[0]:,} times {words}" if batch else words


def readme() -> str:
    """Why to believe it: the rows that stand for the rest, the slow one included."""
    results = load()
    rows = [*_solve_rows(results["solve"]["cases"])][:1]
    rows += [*_cloud_rows(results["clouds"]["cases"])][:1]
    rows += _point_rows("parameters", results)
    rows += [*_product_rows(results["product"]["cases"])][-1:]
    rows += [_training_row(results["training"], "logistic")]
    rows += [*_compile_rows(results["compile"]["cases"])][:1]
    return _markdown(("", "lowrank_jax", "beside it", ""), rows)


def fits() -> str:
    """Pairs to an operator."""
    results = load()
    rows = [*_solve_rows(results["solve"]["cases"]), *_cloud_rows(results["clouds"]["cases"])]
    return _markdown(("", "lowrank_jax", "beside it", ""), rows)


def curvature() -> str:
    """A loss to an operator, and products with it."""
    results = load()
    rows = [*_point_rows("parameters", results), *_point_rows("attention", results)]
    rows += _input_rows(results["inputs"]["cases"])
    rows += _product_rows(results["product"]["cases"])
    return _markdown(("", "lowrank_jax", "beside it", ""), rows)


def first_calls() -> str:
    """The first call, with its compilation."""
    rows = []
    for title, *cells in _compile_rows(load()["compile"]["cases"]):
        rows.append((title.partition(": ")[2], *cells))
    return _markdown(("", "first `lowrank_hessian`", "beside it", ""), rows)


def networks() -> str:
    """A Hessian from 21 gradients beside these alone."""
    rows = []
    for name, case in load()["networks"]["cases"].items():
        ours, alone = case["methods"]["lowrank_hessian"], case["methods"]["gradients"]
        rows.append((name, _time(ours), _time(alone), f"{ours['times_gradients']:.2f} times"))
    return _markdown(("", "`lowrank_hessian`, 5 x 4", "21 gradients alone", ""), rows)


def leaves() -> str:
    """First calls for 48 leaves and for one."""
    cases = [case["methods"] for case in load()["leaves"]["cases"].values()]
    rows = []
    for name in list(cases[0])[1:]:  # the first one is the gradient
        call = re.sub(" (in|and) ", r"` \1 `", f"`{name}`")
        rows.append((call, *(_time(of[name]) for of in cases)))
    return _markdown(("first call", "48 leaves", "one vector"), rows)


def training() -> str:
    """How many gradients to the lowest loss that Adam finds."""
    problems = load()["training"]["problems"]
    methods = list(problems["logistic"]["methods"])
    rows = []
    for name, problem in problems.items():
        needed = {method: problem["methods"][method]["to_adam"] for method in methods}
        best = f"{min(of[0] for of in needed.values() if of):,}"
        cells = [_needed(of and (f"{of[0]:,}",), best) for of in needed.values()]
        rows.append((f"{PROBLEMS[name]}, {problem['parameters']:,} parameters", *cells))
    return _markdown(("gradients", *map(_code, methods)), rows)


def training_time() -> str:
    """The same in milliseconds."""
    problems = load()["training"]["problems"]
    methods = list(problems["logistic"]["methods"])
    rows = []
    for name, problem in problems.items():
        needed = [problem["methods"][method]["to_adam"] for method in methods]
        best = _digits(1e3 * min(of[1] for of in needed if of))
        cells = [_needed(of and (_digits(1e3 * of[1]),), best) for of in needed]
        rows.append((f"{PROBLEMS[name]}, {problem['parameters']:,} parameters", *cells))
    return _markdown(("milliseconds", *map(_code, methods)), rows)


def optimisers() -> str:
    """What an optimiser's own step costs."""
    rows = []
    for name, of in load()["optimisers"]["seconds"].items():
        what = "to compile it with its line search, a transformer of 29 leaves"
        name = what if name == "compile" else re.sub("[0-9]+", lambda n: f"{int(n[0]):,}", name)
        taken = (_duration(of[method]) for method in ("optax.lbfgs", "secant_newton"))
        rows.append((name, *taken, f"{of['ratio']:.2g} times"))
    return _markdown(("", "`optax.lbfgs`", "`secant_newton`", ""), rows)


def minibatches() -> str:
    """What equally many gradients of batches lead to."""
    networks = load()["minibatches"]["networks"]
    rows = []
    for method in networks["CNN"]["methods"]:
        ended = (_ended(network["methods"][method]) for network in networks.values())
        rows.append([_code(method), *itertools.chain(*ended)])
    head = [""]
    for name, network in networks.items():
        head += [f"{name}, {network['parameters']:,} parameters: loss", "unseen digits", "rate"]
    return _markdown(head, rows)


def device() -> str:
    """On one GPU."""
    sections = load_device()["sections"]
    cases = {case["name"]: case["methods"] for of in sections.values() for case in of["cases"]}
    rows = []
    for section in ("fit", "clouds"):
        for case in sections[section]["cases"]:
            if case["unit"] != "copy":
                continue
            fit, copy = case["methods"]["fit"], case["methods"]["copy"]
            copies = f"{fit['times_copy']:.1f} copies"
            shown = f"copying the pairs {_time(copy)}"
            rows.append((f"fit, {spoken(case['name'])}", _time(fit), shown, copies))
    for kind, ours in (("cnn", "lowrank 4x5 one by one"), ("mlp", "lowrank 4x5")):
        name = next(n for n in cases if n.startswith(kind) and PEER in cases[n])
        ours, peer = cases[name][ours], cases[name][PEER]
        count = f"{int(name.split()[1]):,} parameters"
        title = f"Hessian of {'a CNN' if kind == 'cnn' else 'an MLP'}, {count}"
        beside = f"Lanczos, 20 exact products: {_with_error(peer)}"
        rows.append((title, _with_error(ours), beside, _share(ours, peer)))
    operator = next(m for n, m in cases.items() if n.startswith("cnn") and "operator" in n)
    slow = f"{operator['solve']['seconds'] / operator['H @ v']['seconds']:.0f} products"
    rows.append(
        ("`solve` with that of the CNN", _time(operator["solve"]),
         f"`H @ v` {_time(operator['H @ v'])}", slow)
    )  # fmt: skip
    return _markdown(("", "lowrank_jax", "beside it", ""), rows)


def task(part: str, judged: str = "error") -> str:
    """One task of `tasks`, known by a part of its cases' names: a row a tool, a column a case."""
    cases = {name: of for name, of in load()["tasks"]["cases"].items() if part in name}
    tools = dict.fromkeys(tool for case in cases.values() for tool in case["methods"])
    rows = [
        (_tool(tool), *(_achieved(case["methods"].get(tool), judged) for case in cases.values()))
        for tool in tools
        if tool != "gradient"
    ]
    return _markdown(("", *map(_task_column, cases)), rows)


def scale() -> str:
    """What was run with long vectors."""
    found = load()["scale"]
    alone, devices, processes = (found[of] for of in ("one device", "8 devices", "4 processes"))
    written, read = processes["write"], processes["read by 2"]
    held = f"{alone['peak_bytes'] / 1e9:.1f} GB held at most"
    return _markdown(
        ("", "numbers", "compilation", "a fit", ""),
        [
            _scale_row("one device", alone["dim"], alone, held),
            _scale_row("8 devices of one process", devices["dim"], devices, ""),
            _scale_row("4 processes", processes["dim"], written, _checkpoint("written", written)),
            ("2 processes, the same operator", f"{processes['dim']:,}", "-", "-",
             _checkpoint("read", read)),
        ],
    )  # fmt: skip


def scale_memory() -> str:
    """What a device of a pod holds, by the compiled programs."""
    found = load()["scale"]["arithmetic"]["dtypes"]
    parts = {"vector": "a vector", "pairs": "8 pairs", "factors": "16 factors"}
    parts |= {"temporaries": "what the fit needs beside them", "all": "together, without a vector"}
    rows = []
    for part, words in parts.items():
        rows.append((words, *(f"{of['gigabytes'][part]:.3g} GB" for of in found.values())))
    return _markdown(("", *found), rows)


def device_checks() -> tuple[int, int]:
    """How many of a device's checks hold, of how many that have a bound."""
    checks = [c for s in load_device()["sections"].values() for c in s["checks"]]
    bounded = [c["ok"] for c in checks if c["ok"] is not None]
    return sum(bounded), len(bounded)


PROBLEMS = {
    "least_squares": "least squares, condition 1e6",
    "logistic": "logistic regression, unscaled features",
    "poisson": "physics-informed network",
    "autoencoder": "autoencoder",
}
TABLES = {
    "readme": readme,
    "fits": fits,
    "curvature": curvature,
    "first-calls": first_calls,
    "networks": networks,
    "leaves": leaves,
    "training": training,
    "training-time": training_time,
    "optimisers": optimisers,
    "minibatches": minibatches,
    "device": device,
    "tasks-eigenvalues": partial(task, "leading eigenvalues"),
    "tasks-trace": partial(task, ": trace"),
    "tasks-system": partial(task, ": system"),
    "tasks-minimum": partial(task, ": minimum"),
    "tasks-mass": partial(task, "mass matrix", "condition"),
    "tasks-update": partial(task, "updates"),
    "scale": scale,
    "scale-memory": scale_memory,
}


def _markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("|  |", "| |")


def _solve_rows(cases):
    for label, case in cases.items():
        ours, qr = case["methods"]["fit"], case["methods"]["numpy_qr"]
        beside = f"NumPy with a tall QR: {_time(qr)}"
        said = f"{_ratio(qr, ours)}; {ours['times_copy']:.1f} times a copy of the pairs"
        yield f"fit, {spoken(label)}", _time(ours), beside, said


def _cloud_rows(cases):
    for label, case in cases.items():
        methods = case["methods"]
        ours, title = methods["fit by 256"], f"fit, {spoken(label)}, 256 at a time"
        for name, words in (
            ("numpy_loop", "an eigenvalue problem each, in a NumPy loop"),
            ("numpy_qr", "NumPy's QR of all at once"),
        ):
            beside = f"{words}: {_time(methods[name])}"
            yield title, _time(ours), beside, _ratio(methods[name], ours)
            title = "the same"


def _point_rows(problem, results):
    for label, case in results[problem]["cases"].items():
        methods = case["methods"]
        ours, peer = methods[matching(methods)], methods[PEER]
        count = f"{int(label.split()[0]):,} parameters"
        title = {"parameters": "a network", "attention": "an attention network"}[problem]
        beside = f"matfree's Lanczos, 20 exact products: {_with_error(peer)}"
        yield f"Hessian of {title}, {count}", _with_error(ours), beside, _share(ours, peer)


def _product_rows(cases):
    for label, case in cases.items():
        ours, exact = case["methods"]["product"], case["methods"]["hvp"]
        count, images = label.replace(" images", "").split(" parameters, ")
        beside = f"exact product over {int(images):,} images: {_time(exact)}"
        title = f"`H @ v`, 32 factors, {int(count):,} parameters"
        yield title, _time(ours), beside, _ratio(exact, ours)


def _training_row(training, name):
    methods = training["problems"][name]["methods"]
    ours = methods["precondition_top_curvature"]["to_adam"][0]
    lbfgs, adam = (methods[of]["to_adam"][0] for of in ("optax.lbfgs", "Adam"))
    title = f"gradients to the loss that Adam reaches with 2,000, {PROBLEMS[name]}"
    beside = f"`optax.lbfgs`: {lbfgs:,}; Adam: {adam:,}"
    return title, f"{ours:,}", beside, f"{lbfgs / ours:.1f} times fewer than L-BFGS"


def _compile_rows(cases):
    for label, case in cases.items():
        ours, dense = case["methods"]["lowrank_hessian"], case["methods"]["jax.hessian"]
        size = case["dimension"]
        title = f"first `lowrank_hessian`, with its compilation: {label} ({size:,} numbers)"
        gigabytes = 4e-9 * size**2
        note = f", whose result would take {gigabytes:.0f} GB" if gigabytes > 8 else ""
        yield title, _time(ours), f"`jax.hessian`{note}: {_time(dense)}", _ratio(dense, ours)


def _input_rows(cases):
    for label, case in cases.items():
        dense = case["methods"]["jax.hessian"]
        for name, words in (("secant 16", "cloud of 17"), ("lowrank 8x3", "8 probes, 3 passes")):
            ours = case["methods"][name]
            beside = f"`jax.hessian` and `eigh`: {_time(dense)}"
            beside += f"; best of rank 16: {case['best_of_rank_16']:.3f}"
            title = f"Hessians in 64 pixels, {label}, {words}"
            yield title, _with_error(ours), beside, _ratio(dense, ours)


def _task_column(case):
    """The network, or how many draws or updates."""
    network, _, task = case.partition(": ")
    return network if task else re.search(r"\d+ (draws|updates)", case)[0]


def _tool(name):
    """The name with what is code in it as such."""
    names = r"\b(lowrank_\w+|secant_newton|optax\.lbfgs|eigsh|cg|estimate|fit)\b(\(base=\))?"
    return re.sub(names, r"`\g<0>`", name)


def _achieved(of, judged):
    """Time, evaluations and error of a tool."""
    if of is None:
        return "-"
    counts = [f"{of[kind]:.0f} {kind}" for kind in ("gradients", "products") if of.get(kind)]
    return ", ".join([_time(of), *counts, f"{judged} {_significant(of['error'])}"])


def _significant(number):
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"


def _scale_row(name, dim, of, note):
    return name, f"{dim:,}", f"{of['compile_seconds']:.2g} s", f"{of['seconds']:.2g} s", note


def _checkpoint(verb, of):
    return f"checkpoint {verb} in {of['checkpoint_seconds']:.2g} s"


def _needed(found, best):
    """A cell, the best one bold."""
    if not found:
        return "-"
    return f"**{found[0]}**" if found[0] == best else found[0]


def _ended(of):
    """The loss with that of the best and the worst order, the accuracy and the rate."""
    loss, low, high = (_loss(x) for x in (of["loss"], of["losses"][0], of["losses"][-1]))
    return f"{loss} ({low} to {high})", f"{100 * of['accuracy']:.1f} %", f"{of['rate']:g}"


def _loss(number):
    return "diverges" if number is None or number >= 100 else f"{number:.2g}"


def _digits(number):
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _code(method):
    """A method's name, those of Python as code."""
    parts = method.split(", ")
    return ", ".join(f"`{x}`" if re.search("[a-z][._][a-z]", x) else x for x in parts)


def _with_error(of):
    return f"{_time(of)}, error {of['error']:.3f}"


def _time(of):
    return _duration(of["seconds"])


def _duration(seconds):
    if seconds < 1e-4:
        return f"{1e6 * seconds:.2g} µs"
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.2g} s"


def _share(ours, peer):
    return f"{ours['seconds'] / peer['seconds']:.2f} of its time"


def _ratio(peer, ours):
    ratio = peer["seconds"] / ours["seconds"]
    if abs(ratio - 1) < 0.05:
        return "as fast"
    return f"{ratio:.2g} times faster" if ratio > 1 else f"**{1 / ratio:.2g} times slower**"


if __name__ == "__main__":
    main()
