"""Breaks the library, one place at a time, and sees that tests notice: `python tests/mutants.py`.

Each mutant is a copy of the library and its tests in a temporary folder, with one text replaced by
another, and the tests that should fail there. It is an error if a mutant survives, if its text is
not found exactly once, or if these tests do not pass in a copy without a change. Names given as
arguments are those of the mutants to run. Tests run with the interpreter that runs this.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COPIED = ("lowrank_jax", "tests", "benchmarks", "pyproject.toml")
TIMEOUT = 300  # seconds a run


class Mutant(NamedTuple):
    """What is broken, in which module (dotted, below the library), and the test that sees it."""

    name: str
    module: str
    old: str
    new: str
    test: str


PRECISION = (
    "test_lowering.py::test_small_matrices_alone_are_factorized_in_a_chain_at_highest_precision"
)
MUTANTS = (
    Mutant(
        "M is not symmetrised",
        "_clouds.fit",
        "m, eye = whitened.symmetric(a), ",
        "m, eye = a, ",
        "test_fit.py::test_inconsistent_pairs_are_least_squares_in_whitened_steps[0]",
    ),
    Mutant(
        "the damping knows nothing of Z",
        "_clouds.fit",
        "h = jnp.sqrt(rank / jnp.where(trace > 0, trace, 1))",
        "h = jnp.sqrt(jnp.sum(m * m) / rank)",
        "test_fit.py::"
        "test_a_hessian_of_lower_rank_than_the_steps_is_recovered_at_any_extrapolation"
        "[0.6666666666666666-1e-08-12]",
    ),
    Mutant(
        "curvature that is noise is extrapolated",
        "_clouds.fit",
        "w = d * eye + e * f_squared / (d**2 + f_squared) * floor",
        "w = d * eye + 1e-30 * floor",
        "test_hostile.py::"
        "test_what_has_nearly_no_curvature_extrapolates_to_a_bounded_operator[1e-10-float64]",
    ),
    Mutant(
        "options out of range make no NaN",
        "_clouds.fit",
        "valid = (extrapolate >= 0) & (extrapolate <= 1)",
        "valid = extrapolate == extrapolate",
        "test_fit.py::test_traced_options_out_of_range_give_no_plausible_operator",
    ),
    Mutant(
        "numbers that are not finite poison nothing",
        "_core.scaling",
        "return jnp.where(valid, 1, jnp.nan).astype(dtype)",
        "return jnp.where(valid, 1, 1).astype(dtype)",
        "test_fit.py::test_traced_options_out_of_range_give_no_plausible_operator",
    ),
    Mutant(
        "two measurements of one number count alike",
        "_clouds.whitened",
        "return m + symmetrize(lyapunov(*self.quality, weighted + weighted.T))",
        "return m",
        "test_weights.py::test_where_steps_span_the_space_it_is_weighted_least_squares[as many]",
    ),
    Mutant(
        "what a base explains is fitted again",
        "_clouds.fit",
        "jax.tree.map(jnp.subtract, y, images)",
        "y",
        "test_base.py::test_it_is_changed_as_little_as_the_pairs_ask_for[a number]",
    ),
    Mutant(
        "a coarse gradient counts as a fine one",
        "history",
        "return coarser * lax.stop_gradient(scaling.norm(kept))",
        "return lax.stop_gradient(scaling.norm(kept))",
        "test_history.py::test_the_rounding_is_that_of_the_gradients_that_were_given[second]",
    ),
    Mutant(
        "weights are forgotten",
        "_clouds.whitened",
        "weighted = r.T * weights[None, :]",
        "weighted = r.T * jnp.ones_like(weights)[None, :]",
        "test_weights.py::test_where_steps_span_the_space_it_is_weighted_least_squares[more]",
    ),
    Mutant(
        "what pairs contradict each other by is extrapolated",
        "_clouds.fit",
        "+ u_squared * lax.rsqrt(eps + u_squared) * eye",
        "",
        "test_fit.py::test_what_pairs_contradict_each_other_by_is_not_extrapolated",
    ),
    Mutant(
        "rounding makes information negative",
        "_clouds.whitened",
        "values = jnp.maximum(values, least)",
        "values = values + 0",
        "test_weights.py::test_weights_over_thirty_decades_make_nothing_large",
    ),
    Mutant(
        "what is only rounding makes one of the D pairs",
        "_clouds.whitened",
        "columns = tall.where(sizes > 2 * error, u.T)",
        "columns = u.T",
        "test_degenerate.py::test_a_coordinate_that_is_rounding_is_no_step_of_many_pairs[0]",
    ),
    Mutant(
        "rows are combined at default precision",
        "_core.tall",
        "jnp.tensordot(t, x, 1, precision=lax.Precision.HIGHEST)",
        "jnp.tensordot(t, x, 1)",
        PRECISION + "[mv]",
    ),
    Mutant(
        "small matrices are multiplied at default precision",
        "_core.spectral",
        "jnp.matmul(result, matrix, precision=lax.Precision.HIGHEST)",
        "jnp.matmul(result, matrix)",
        PRECISION + "[mv]",
    ),
    Mutant(
        "long sums of rows that cancel are running sums",
        "_core.tall",
        "_grouped if grouped and len(x) > 32 else _product",
        "_product",
        "test_pieces.py::test_sums_of_many_rows_are_sums_of_sums",
    ),
    Mutant(
        "a combination that vanishes is kept",
        "_core.orthonormal",
        "own = jnp.where(gone, 1, 1 - lax.rsqrt(square))",
        "own = jnp.where(gone, 0, 1 - lax.rsqrt(square))",
        "test_degenerate.py::test_many_steps_of_noise_alone_span_what_they_span",
    ),
    Mutant(
        "a combination vanishes where its Gram matrix cannot tell",
        "_core.orthonormal",
        "gone = jnp.maximum(square, short) <= least",
        "gone = square <= least",
        "test_float32_accuracy.py::test_error_is_within_five_times_that_of_householder_qr",
    ),
    Mutant(
        "a combination that vanishes leaks into the others",
        "_core.orthonormal",
        "beside = jnp.where(gone, product(rows[:, n:], row[n:]), rows[i, :n])",
        "beside = jnp.where(gone, 0, rows[i, :n])",
        "test_degenerate.py::test_dependent_pairs_are_least_squares[combination]",
    ),
    Mutant(
        "a long combination is rounded with each term",
        "_core.orthonormal",
        "transform = found.combine + product(lax.stop_gradient(found.correct), found.combine)",
        "transform = product(jnp.eye(len(found.kept), dtype=found.correct.dtype) + "
        "lax.stop_gradient(found.correct), found.combine)",
        "test_float32_accuracy.py::"
        "test_error_is_within_five_times_that_of_householder_qr[clustered-64-0]",
    ),
    Mutant(
        "the combinations of the basis are differentiated",
        "_core.orthonormal",
        "fixed, fixed_unit, inner = lax.stop_gradient((rows, unit, inner))",
        "fixed, fixed_unit, inner = rows, unit, inner",
        "test_derivatives.py::test_derivatives_with_a_duplicated_point[0]",
    ),
    Mutant(
        "the pseudo-inverse is differentiated as an inverse",
        "_core.orthonormal",
        "return t, product(t, t.T, dr.T, residual) - product(t, dr, t)",
        "return t, -product(t, dr, t)",
        "test_derivatives.py::test_derivatives_along_dependent_steps[False-0]",
    ),
    Mutant(
        "eigenvectors turn the wrong way",
        "_core.spectral",
        "dv = product(v, scaling.reciprocal(w[None, :] - w[:, None]) * rotated)",
        "dv = product(v, scaling.reciprocal(w[:, None] - w[None, :]) * rotated)",
        "test_operator_derivatives.py::test_truncation_differentiates_where_eigenvalues_outside_repeat",
    ),
    Mutant(
        "pivots are taken as they come",
        "_core.spectral",
        "return jnp.argmax(jnp.where(free, sizes, -1))",
        "return jnp.argmax(free)",
        "test_spectral.py::test_a_resolvent_whose_diagonal_vanishes_early_keeps_its_digits",
    ),
    Mutant(
        "the whitening is differentiated as if it were symmetric",
        "_core.spectral",
        "lower = jnp.tril(change) - jnp.diag(diagonal(change)) / 2",
        "lower = jnp.tril(change)",
        "test_spectral.py::test_second_derivatives_of_the_inverse_root_are_those_of_the_inverse",
    ),
    Mutant(
        "every kernel compares indices anew",
        "_core.xla",
        "return lax.optimization_barrier(x)",
        "return x",
        "test_lowering.py::test_no_kernel_compares_indices_of_a_matrix_anew",
    ),
    Mutant(
        "one of a batch ends the loop for all",
        "_core.xla",
        "return (counted[0] < most) & ~until(counted[1])",
        "return (counted[0] < most - 1) & ~until(counted[1])",
        "test_spectral.py::test_a_loop_ends_for_each_of_a_batch_where_it_should[1]",
    ),
    Mutant(
        "on several devices no member of a batch ends",
        "_core.xla",
        "lambda a, b: jnp.where(until(state), a, b), state, body(state)",
        "lambda a, b: b, state, body(state)",
        "test_spectral.py::test_a_loop_ends_for_each_of_a_batch_where_it_should[2]",
    ),
    Mutant(
        "the rest of the long axis is left out of a sum",
        "_core.xla",
        "f(small, *[x[:, :rest] for x in leaves]), unroll=2",
        "0 * f(small, *[x[:, :rest] for x in leaves]), unroll=2",
        "test_pieces.py::test_a_sum_and_rows_of_pieces_are_those_of_the_whole",
    ),
    Mutant(
        "the derivative of a known sum is that of the value given",
        "_core.xla",
        "return _with_derivative_of(f, *primals), tangent",
        "return primals[0], tangents[0]",
        "test_pieces.py::test_derivatives_of_pieces_are_those_of_the_whole_and_of_chains_contain_no_loop",
    ),
    Mutant(
        "the last piece is not written",
        "_core.xla",
        "lax.fori_loop(0, -(-size // width), write, out)",
        "lax.fori_loop(0, size // width, write, out)",
        "test_pieces.py::test_a_sum_and_rows_of_pieces_are_those_of_the_whole",
    ),
    Mutant(
        "long sums of products with a vector are running sums",
        "_core.tall",
        "if v.size > 2 * LONGEST_SUM:",
        "if v.size > 2**30:",
        "test_pieces.py::test_long_sums_in_single_precision_keep_its_digits[262144]",
    ),
    Mutant(
        "beside a derivative a long sum is a running sum",
        "_core.xla",
        "return value if chain else",
        "return value if True else",
        "test_pieces.py::test_long_sums_in_single_precision_keep_its_digits[262144]",
    ),
    Mutant(
        "a chain stays whole on a GPU",
        "_core.xla",
        "cut = _cut(rows, longest) and (chain or _on_cpu())",
        "cut = _cut(rows, longest) and _on_cpu()",
        "test_pieces.py::test_off_a_cpu_chains_take_little_memory_beside_their_rows",
    ),
    Mutant(
        "a product alone is cut on a GPU",
        "_core.xla",
        "cut = _cut(rows, longest) and (chain or _on_cpu())",
        "cut = _cut(rows, longest)",
        "test_pieces.py::test_off_a_cpu_chains_take_little_memory_beside_their_rows",
    ),
    Mutant(
        "rows one at a time are batches of one",
        "_core.xla",
        "if batch_size == 1:",
        "if batch_size == 0:",
        "test_pieces.py::test_rows_one_at_a_time_are_no_batch_of_one[1-shape0]",
    ),
    Mutant(
        "a loop in a shard_map begins with what does not vary",
        "_core.xla",
        "return jax.tree.map(lambda x: jnp.where(true, x, x), tree)",
        "return tree",
        "test_devices.py::test_passes_on_eight_devices",
    ),
    Mutant(
        "the places of a loss's arguments are those of the call",
        "_core.losses",
        "places = dict(zip(positions, (x,) if alone else x, strict=True))",
        "places = dict(zip(sorted(positions), (x,) if alone else x, strict=True))",
        "test_products.py::test_products_of_a_tuple_of_arguments_take_tuples",
    ),
    Mutant(
        "no leaves are packed",
        "_core.structure",
        "return [alone and sum(small) > 1 and packs for packs in small]",
        "return [False for packs in small]",
        "test_pieces.py::test_packed_rows_unpack_to_what_they_were",
    ),
    Mutant(
        "few parameters have few eigenpairs",
        "_core.structure",
        "missing = max(0, count - len(x))",
        "missing = 0",
        "test_optim.py::test_of_fewer_parameters_than_probes_all_curvature_is_known",
    ),
    Mutant(
        "the places of packed leaves are known to the compiler",
        "_core.structure",
        "lax.dynamic_slice_in_dim(rows, start, size, 1, allow_negative_indices=False)\n"
        "        for start, size in zip(starts, sizes",
        "lax.slice_in_dim(rows, start, start + size, axis=1)\n"
        "        for start, size in zip(map(int, np.cumsum([0, *sizes[:-1]])), sizes",
        "test_pieces.py::test_parts_of_one_size_are_unpacked_by_one_kernel",
    ),
    Mutant(
        "the steps of a comparison are not collinear",
        "_at_a_point.steps",
        "base = jnp.where(i == LADDER, lowest, "
        "jnp.where(i == RUNGS, _exponent(search, power), base))",
        "base = _of_rung(search._replace(base=_exponent(search, power)), i)",
        "test_steps.py::test_how_the_point_is_rounded_drops_out_of_all_comparisons[False]",
    ),
    Mutant(
        "all steps of a comparison are to one side",
        "_at_a_point.steps",
        "return 1 - 2 * ((i % LADDER) % 2)",
        "return 1 + 0 * i",
        "test_steps.py::test_how_the_point_is_rounded_drops_out_of_all_comparisons[False]",
    ),
    Mutant(
        "the second pass looks where the first one found",
        "_at_a_point.differences",
        "jnp.where(second, 1 / 16, 1)",
        "jnp.where(second, 1, 1)",
        "test_steps.py::test_the_second_pass_looks_for_shorter_steps",
    ),
    Mutant(
        "pairs that contradict symmetry are not flagged",
        "_at_a_point.errors",
        "errors = jnp.maximum(measured.errors, jnp.repeat(contradictions, probes))",
        "errors = measured.errors",
        "test_steps.py::test_a_field_that_is_no_gradient_is_flagged",
    ),
    Mutant(
        "the steps of a check are not those of its pairs",
        "_at_a_point.errors",
        "lambda a, x: a - x[None], ahead, packed)",
        "lambda s: h * s, krylov.rows(steps, offset, probes))",
        "test_steps.py::test_how_the_point_is_rounded_drops_out_of_all_comparisons[False]",
    ),
    Mutant(
        "a reduction is compiled for each method anew",
        "_operators.symmetric",
        "    def eigenvalues(self)",
        "    @jax.jit\n    def eigenvalues(self)",
        "test_programs.py::test_what_is_most_to_compile_is_compiled_once_for_all_that_is_asked[operator]",
    ),
    Mutant(
        "errors look small beside a slope that is mostly one jump",
        "_at_a_point.errors",
        "along = jnp.clip(cosines, 0, scaling.ratio(missed, slopes))",
        "along = jnp.zeros_like(cosines)",
        "test_steps.py::test_errors_are_not_compared_with_slopes_that_are_mostly_error[1-2000]",
    ),
    Mutant(
        "errors look small beside slopes that are nothing else",
        "_at_a_point.errors",
        "jnp.sqrt(jnp.minimum(across, without))",
        "jnp.sqrt(across)",
        "test_steps.py::test_errors_are_not_compared_with_slopes_that_are_mostly_error[3-400]",
    ),
    Mutant(
        "what is saturated tells of truncation",
        "_at_a_point.steps",
        "jnp.clip(relative - 0.5, 0, 0.5)",
        "0 * relative",
        "test_steps.py::test_steps_are_found_that_lie_between_the_rungs_of_the_ladder[0.001]",
    ),
    Mutant(
        "a quotient of zero shows noise",
        "_at_a_point.steps",
        "jnp.where(sizes[:-1] > 0, exponents[:-1], exponents[1:])",
        "exponents[:-1]",
        "test_steps.py::test_a_quotient_of_zero_does_not_show_how_small_the_noise_is",
    ),
    Mutant(
        "what is rounding of the steps so far is a direction",
        "_at_a_point.krylov",
        "jnp.any((squares == 0) | (squares > MOST_SQUARE))",
        "jnp.any(squares > MOST_SQUARE)",
        "test_probe.py::test_float32_steps_of_ten_passes_are_orthonormal",
    ),
    Mutant(
        "one round makes directions",
        "_at_a_point.krylov",
        "MOST_SQUARE = 4",
        "MOST_SQUARE = float('inf')",
        "test_probe.py::test_float32_steps_of_ten_passes_are_orthonormal",
    ),
    Mutant(
        "steps are copied before they are written",
        "_at_a_point.differences",
        "taken = krylov.write(pairs.steps, i, taken)",
        "taken = krylov.write(pairs.steps, i, quotient(ahead, x))",
        "test_pieces.py::test_pairs_are_written_where_they_are",
    ),
    Mutant(
        "four rows of random numbers are one",
        "_core.structure",
        "(words << i) | (words >> (32 - i))",
        "words + 0 * i",
        "test_probe.py::test_directions_of_a_start_that_are_missing_are_random",
    ),
    Mutant(
        "a pass draws the random directions of the first one",
        "_at_a_point.krylov",
        "key = jnp.where(offset == 0, key, jax.random.fold_in(key, offset))",
        "",
        "test_probe.py::test_float32_steps_of_ten_passes_are_orthonormal",
    ),
    Mutant(
        "a Ritz residual leaves out what contradicts itself",
        "_at_a_point.ritz",
        "residuals = jnp.where(empty, jnp.inf, scaling.norms(rest))",
        "residuals = jnp.where(empty, jnp.inf, 0 * scaling.norms(rest))",
        "test_ritz.py::test_contradictions_are_in_the_residuals",
    ),
    Mutant(
        "a loss is compiled anew each time",
        "_core.programs",
        "if None in weak:",
        "if True:",
        "test_programs.py::test_the_same_call_written_anew_compiles_nothing",
    ),
    Mutant(
        "a program keeps its loss alive",
        "_core.programs",
        "again = functools.partial(_transformed, transform, weak, options)",
        "again = functools.partial(lambda f: f, plain)",
        "test_programs.py::test_a_dropped_loss_is_collected_with_its_data",
    ),
    Mutant(
        "the cut of the skeleton is absolute",
        "_models.cur",
        "cut = rtol * s[0]",
        "cut = rtol / unit",
        "test_skeleton.py::test_the_skeleton_is_the_formula_and_cuts_relative_to_the_largest",
    ),
    Mutant(
        "pairs are not centered",
        "_clouds.pairs",
        "return _differences(near, tall.combine(mean, near))",
        "return near",
        "test_pairs.py::test_each_pairing_forms_its_differences",
    ),
    Mutant(
        "a step that is rounding counts",
        "_clouds.pairs",
        "steps = tall.scale(_resolved(steps, points), steps)",
        "pass",
        "test_pairs.py::test_points_on_lines_have_a_step_for_each_line[2-ends0-float64]",
    ),
    Mutant(
        "what rounding leaves of two steps is a direction",
        "_core.orthonormal",
        "noise = known if errors is None else jnp.clip(errors, known, MOST_ERROR)",
        "noise = known",
        "test_pairs.py::test_points_on_lines_have_a_step_for_each_line[2-ends1-float64]",
    ),
    Mutant(
        "an rtol that is chosen knows no rounding",
        "_clouds.selection",
        "candidates = jnp.clip(candidates, 2 * jnp.max(errors, initial=0), max(RTOLS))",
        "pass",
        "test_pairs.py::test_a_chosen_rtol_leaves_out_what_rounding_parts[ends0]",
    ),
    Mutant(
        "gradient differences are as uncertain as steps",
        "_clouds.selection",
        "(s, errors), (y, jnp.zeros_like(errors))",
        "(s, errors), (y, errors)",
        "test_quality.py::test_only_steps_are_as_uncertain_as_steps",
    ),
    Mutant(
        "a residual is in the units of the compression",
        "_clouds.diagnosis",
        "scaling.norms(missed) / units[1] * units[0]",
        "scaling.norms(missed)",
        "test_quality.py::test_diagnosis_is_the_dense_computation",
    ),
    Mutant(
        "nor is it one where steps are more than dimensions",
        "_clouds.whitened",
        "error = jnp.maximum(error, scaling.norm(errors) / math.sqrt(len(u.T)))",
        "pass",
        "test_pairs.py::test_points_on_lines_have_a_step_for_each_line[5-ends1-float64]",
    ),
    Mutant(
        "rounding along the span stays in a solution",
        "_operators.shifted",
        "for _ in range(2):",
        "for _ in range(1):",
        "test_operator.py::test_solve_is_backward_stable_for_factors_of_any_scale[9-float32]",
    ),
    Mutant(
        "a vector of dampings is solved as a number is",
        "_operators.shifted",
        "    if not graded:\n",
        "    if True:\n",
        "test_operator.py::"
        "test_variables_in_units_far_apart_keep_their_curvature_with_a_vector_of_dampings[float32]",
    ),
    Mutant(
        "small curvature is left in coordinates that mix it with large one",
        "_operators.shifted",
        "    left, eye = product(found.basis.coordinates, turn), ",
        "    turn = jnp.eye(len(turn), dtype=turn.dtype)\n"
        "    left, eye = product(found.basis.coordinates, turn), ",
        "test_operator.py::"
        "test_variables_in_units_far_apart_keep_their_curvature_with_a_vector_of_dampings[float32]",
    ),
    Mutant(
        "draws with a vector of dampings are those with a number",
        "_operators.shifted",
        "pairs = None if is_number(d) else ",
        "pairs = None if True else ",
        "test_operator.py::"
        "test_variables_in_units_far_apart_keep_their_curvature_with_a_vector_of_dampings[float32]",
    ),
    Mutant(
        "a factor's rows do not move the basis of the inverse",
        "_operators.shifted",
        "return _with_motion(*primals), moved",
        "return _with_motion(*primals), jax.tree.map(jnp.zeros_like, moved)",
        "test_operator_diagonal.py::"
        "test_derivatives_of_two_orders_are_those_of_the_matrix[False-generic]",
    ),
    Mutant(
        "what a zero row adds to the inverse is forgotten",
        "_operators.shifted",
        "inner = resolvent.complement() + mixed + mixed.T + corner",
        "inner = resolvent.complement() + mixed + mixed.T",
        "test_operator_diagonal.py::"
        "test_derivatives_of_two_orders_are_those_of_the_matrix[False-dependent]",
    ),
    Mutant(
        "zero rows of a function of H carry no derivative",
        "_operators.reduced",
        "coupling = free[:, None] * product(",
        "coupling = 0 * free[:, None] * product(",
        "test_operator_derivatives.py::test_derivatives_of_functions_of_the_operator"
        "[fitted_identity]",
    ),
    Mutant(
        "dependent rows have no place of their own",
        "_core.orthonormal",
        "return independent + free[:, None] *",
        "return independent + 0 * free[:, None] *",
        "test_operator_derivatives.py::test_derivatives_of_functions_of_the_operator"
        "[fitted_identity]",
    ),
    Mutant(
        "eigenvalues that are rounding are kept",
        "_operators.reduced",
        "jnp.where(jnp.abs(w) <= found.noise, w, 0)",
        "jnp.where(jnp.abs(w) < 0, w, 0)",
        "test_operator.py::test_what_cancels_is_exactly_zero",
    ),
    Mutant(
        "rounding of gradients counts as curvature",
        "_operators.symmetric",
        "structure.resolution(self.factors) ** 0.5",
        "structure.resolution(self.factors)",
        "test_operator.py::test_rigid_motions_count_as_zero_and_a_tolerance_decides",
    ),
    Mutant(
        "the difference is divided by the step that was meant",
        "_at_a_point.differences",
        "taken = tall.dot(jax.tree.map(jnp.subtract, ahead, behind), unit)",
        "taken = jnp.sqrt(jnp.finfo(size.dtype).eps)",
        "test_products.py::test_the_difference_is_divided_by_the_step_really_taken",
    ),
    Mutant(
        "the hard case of the trust region is not seen",
        "_models.trust_region",
        "hard = short & (least > 0)",
        "hard = short & (least < 0)",
        "test_quadratic.py::"
        "test_the_trust_region_step_satisfies_the_conditions_of_more_and_sorensen[float64]",
    ),
    Mutant(
        "a point that is not finite joins the history",
        "history",
        "lambda x, y: jnp.where(finite, x, y), given, old",
        "lambda x, y: x, given, old",
        "test_history.py::"
        "test_what_is_not_finite_changes_the_count_alone_and_the_next_pair_spans_two_steps",
    ),
    Mutant(
        "a gradient that is not finite moves the optimiser",
        "optim",
        "lambda x: jnp.where(usable, x, 0), updates",
        "lambda x: x, updates",
        "test_optim.py::test_a_gradient_that_is_not_finite_gives_no_step_and_no_pair",
    ),
    Mutant(
        "pairs that contradict each other are made conjugate all the same",
        "_training.direction",
        "share = size * scaling.reciprocal(size + (column - row[:n]) ** 2)",
        "share = jnp.ones_like(column)",
        "test_optim.py::"
        "test_pairs_that_contradict_each_other_are_made_conjugate_as_far_as_they_agree",
    ),
    Mutant(
        "a pair of which rounding is left is taken off older ones",
        "_training.direction",
        "older = (jnp.arange(n) > j) & (jnp.abs(pivot) > least[j])",
        "older = jnp.arange(n) > j",
        "test_optim.py::test_what_is_rounding_beside_newer_pairs_counts_for_nothing",
    ),
    Mutant(
        "negative curvature attracts",
        "_training.direction",
        "signs = jnp.where(used, jnp.sign(pivots), 0)",
        "signs = jnp.where(used, 1.0, 0)",
        "test_optim.py::"
        "test_along_eigenvectors_the_model_is_the_magnitude_of_the_hessian_and_the_damping",
    ),
    Mutant(
        "the image of a model has its Hessian",
        "_models.trust_region",
        "jnp.reshape(-2 * w, (1, 1))",
        "jnp.reshape(0 * w, (1, 1))",
        "test_saddle.py::test_a_saddle_step_minimises_the_image_of_the_model",
    ),
    Mutant(
        "a loss of masked parameters is that of some of them",
        "optim",
        "lambda x, *args: loss(fill(x), *args)",
        "lambda x, *args: loss(x, *args)",
        "test_optim_contract.py::test_masked_parameters_are_left_to_others",
    ),
    Mutant(
        "wrong shapes come in",
        "_core.checks",
        "        if leaf.shape != (*leading, *row):\n",
        "        if leaf.ndim != lead + len(row):\n",
        "test_errors.py::test_wrong_input_is_an_error_that_says_what_is_wrong"
        "[a direction that does not fit]",
    ),
)


def main(names: list[str]) -> int:
    """Runs the mutants and prints a table; 1 where one is not killed."""
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    tests = sorted({mutant.test for mutant in chosen})
    runs = [(None, tests[i::4]) for i in range(min(4, len(tests)))]
    runs += [(mutant, [mutant.test]) for mutant in chosen]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda run: outcome(*run), runs))
    failed = 0
    print("| mutant | module | tests | outcome | seconds |\n|---|---|---|---|---|")
    for (mutant, tests), (said, seconds) in zip(runs, outcomes, strict=True):
        failed += said != ("killed" if mutant else "survived")
        name, module = mutant[:2] if mutant else ("no change", "")
        print(f"| {name} | {module} | {', '.join(tests)} | {said} | {seconds:.0f} |")
    return int(failed > 0)


def outcome(mutant: Mutant | None, tests: list[str]) -> tuple[str, float]:
    """What the tests say of a copy with this change, and how many seconds they took."""
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        if mutant:
            path = Path(folder, "lowrank_jax", *mutant.module.split(".")).with_suffix(".py")
            text = path.read_text()
            if text.count(mutant.old) != 1:
                return f"text found {text.count(mutant.old)} times", 0.0
            path.write_text(text.replace(mutant.old, mutant.new))
        return verdict(folder, tests)


def verdict(folder: str, tests: list[str]) -> tuple[str, float]:
    """`survived` where the tests pass, `killed` where one fails, else what pytest says."""
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider"]
    command += [f"tests/{test}" for test in tests]
    environment = os.environ | {"PYTHONPATH": folder, "OPENBLAS_NUM_THREADS": "1"}
    start = time.perf_counter()
    try:
        run = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=TIMEOUT, check=False
        )
        said = {0: "survived", 1: "killed"}.get(run.returncode, f"pytest: {run.returncode}")
    except subprocess.TimeoutExpired:
        said = "timeout"
    return said, time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
