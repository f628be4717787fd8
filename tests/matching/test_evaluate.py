"""Protocols end to end on a tiny dataset, with matchers whose scores are known in advance."""

import json
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from rsfuse.errors import InputError, RsfuseError
from rsfuse.matching.data import read_pairs
from rsfuse.matching.evaluate import Evaluation, evaluate
from rsfuse.matching.metrics import transform_points
from rsfuse.matching.protocols import (
    PROTOCOLS,
    SUB_VERSIONS,
    Answer,
    Case,
    load,
    loop_cases,
    phase_bias,
    trust_cases,
)

SIDE = 96
SHIFT = [12.0, -9.0]  # of the pairs that are not near the identity
RESIDUAL = [1.0, -2.0]


def texture(seed: int) -> np.ndarray:
    """A smooth random image, different for every seed."""
    noise = np.random.default_rng(seed).normal(size=(SIDE, SIDE))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    smooth = np.fft.ifft2(np.fft.fft2(noise) * np.exp(-((frequency / 0.12) ** 2))).real
    return (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four optical-sar pairs that are shifted and four optical-map pairs on the identity."""
    folder = tmp_path_factory.mktemp("dataset")
    entries = []
    for number in range(8):
        image = texture(number)
        is_map = number >= 4
        shifted = np.roll(image, [int(SHIFT[1]), int(SHIFT[0])], axis=(0, 1))
        Image.fromarray(image).save(folder / f"{number}_1.png")
        Image.fromarray(image if is_map else shifted).save(folder / f"{number}_2.png")
        dx, dy = (0.0, 0.0) if is_map else SHIFT
        entries.append(
            {
                "set": "tiny",
                "category": "Optical-Map" if is_map else "Optical-SAR",
                "pair": number,
                "image1": f"{number}_1.png",
                "image2": f"{number}_2.png",
                "affine_1to2": [[1, 0, dx], [0, 1, dy]],
                "residual_px": RESIDUAL if is_map else [0, 0],
            }
        )
    (folder / "index.json").write_text(json.dumps(entries))
    return folder


def tie_points(truth, shape0, count: int = 20):
    h, w = shape0
    points0 = np.random.default_rng(0).uniform(0, [w, h], (count, 2))
    return points0, transform_points(truth, points0)


class Oracle:
    """Answers with the truth of the cases in their order, put off by an error."""

    def __init__(self, cases: list[Case], error_px: float = 0.0) -> None:
        self.scenes = iter([load(case) for case in cases])
        self.error_px = error_px

    def __call__(self, image0, image1) -> Answer:
        scene = next(self.scenes)
        assert image1.shape == scene.image1.shape
        transform = scene.truth.copy()
        transform[0, 2] += self.error_px
        points0, points1 = tie_points(transform, scene.shape0)
        return Answer(transform, points0, points1, np.full(len(points0), 0.8), "ok", 0.9, 0.01)


def know_nothing(image0, image1) -> Answer:
    return Answer(None, status="refused", confidence=0.0)


def fail(image0, image1) -> Answer:
    raise RuntimeError("out of luck")


def say_identity(image0, image1) -> Answer:
    points0, points1 = tie_points(np.eye(3), image0.shape[1:])
    return Answer(np.eye(3), points0, points1, np.full(20, 0.6), "ok", 0.6)


def correlate(image0, image1, *, weakest: float = 0.3) -> Answer:
    """Shift to 0.1 px by phase correlation of the common window; refuses a weak peak."""
    h, w = (min(a, b) for a, b in zip(image0.shape[1:], image1.shape[1:], strict=True))
    first, second = image0[0, :h, :w], image1[0, :h, :w]
    window = np.outer(np.hanning(h), np.hanning(w))
    spectra = [np.fft.fft2((part - part.mean()) * window) for part in (first, second)]
    cross = spectra[1] * np.conj(spectra[0])
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(w), np.fft.fftfreq(h)))
    cross = np.where(frequencies < 0.2, cross / np.maximum(np.abs(cross), 1e-9), 0)
    surface = np.fft.ifft2(cross).real
    y, x = np.unravel_index(int(surface.argmax()), surface.shape)
    fine = np.linspace(-1, 1, 41)
    wave = np.fft.fftfreq(h), np.fft.fftfreq(w)
    rows = np.exp(2j * np.pi * np.outer(y + fine, wave[0]))
    columns = np.exp(2j * np.pi * np.outer(wave[1], x + fine))
    zoomed = (rows @ cross @ columns).real
    j, i = np.unravel_index(int(zoomed.argmax()), zoomed.shape)
    dx, dy = x + fine[i], y + fine[j]
    dx, dy = dx - w * (dx > w / 2), dy - h * (dy > h / 2)
    transform = np.eye(3)
    transform[:2, 2] = [dx, dy]
    strength = float(surface.max() * (h * w) / np.count_nonzero(frequencies < 0.2))
    points0, points1 = tie_points(transform, (h, w))
    status = "ok" if strength > weakest else "refused"
    return Answer(transform, points0, points1, np.full(20, strength), status, min(strength, 1.0))


# --- srif --------------------------------------------------------------------------------------


def test_perfect_matcher_has_no_error_and_full_success(dataset: Path) -> None:
    cases = PROTOCOLS["srif"].cases(read_pairs(dataset), 0, False)
    row = evaluate(dataset, "srif", matcher=Oracle(cases)).rows[-1]
    assert row["group"] == "all"
    assert row["success"].value == 1.0
    assert row["mean_counted_px"].value == pytest.approx(0.0, abs=1e-9)
    assert row["within_2"].value == 1.0
    assert row["auc_3"] == pytest.approx(1.0)
    assert row["nothing_px"] > 5


def test_known_error_is_measured_as_it_is(dataset: Path) -> None:
    cases = PROTOCOLS["srif"].cases(read_pairs(dataset), 0, False)
    row = evaluate(dataset, "srif", matcher=Oracle(cases, error_px=2.5)).rows[-1]
    assert row["mean_solved_px"] == pytest.approx(2.5)
    assert row["within_2"].value == 0.0
    assert row["within_3"].value == 1.0
    assert row["rmse_px"] == pytest.approx(2.5)


def test_residual_corrected_truth_is_the_stated_one_plus_the_residual(dataset: Path) -> None:
    result = evaluate(dataset, "srif", matcher=correlate)
    pair = next(p for p in read_pairs(dataset) if p.category == "Optical-Map")
    scene = load(Case(pair, 0))
    moved_residual = np.linalg.norm(RESIDUAL)
    off = transform_points(scene.best_truth, np.array([[48.0, 48.0]])) - transform_points(
        scene.truth, np.array([[48.0, 48.0]])
    )
    assert np.linalg.norm(off) == pytest.approx(moved_residual)
    assert "median_best_truth_px" in result.rows[0]


def test_pairs_near_the_identity_are_moved_and_others_left_alone(dataset: Path) -> None:
    records = evaluate(dataset, "srif", matcher=say_identity).records
    moved = {r["category"] for r in records if r["motion"] is not None}
    assert moved == {"Optical-Map"}
    assert not any(r["grid_error_px"] < 3 for r in records)


def test_refusing_everything_costs_exactly_what_knowing_nothing_costs(dataset: Path) -> None:
    row = evaluate(dataset, "srif", matcher=know_nothing).rows[-1]
    assert row["answered"] == 0.0
    assert row["success"].value == 0.0
    assert row["mean_counted_px"].value == pytest.approx(row["nothing_px"])
    assert np.isnan(row["mean_solved_px"])
    assert row["median_px"].value == np.inf
    assert row["rmse_px"] == 20.0


def test_exception_is_a_counted_failure_with_its_text(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = evaluate(dataset, "srif", matcher=fail, limit=2)
    assert result.rows[-1]["exceptions"] == 2
    assert result.rows[-1]["mean_counted_px"].value > 0
    assert result.records[0]["exception"] == "RuntimeError: out of luck"
    assert "out of luck" in caplog.text


def test_upright_twin_leaves_shifts_that_correlation_finds(dataset: Path) -> None:
    row = evaluate(dataset, "srif", matcher=correlate, upright=True).rows[-1]
    assert row["within_2"].value == 1.0


def test_pairs_that_are_left_as_they_lie_have_no_motion(dataset: Path) -> None:
    turned = evaluate(dataset, "srif", matcher=say_identity)
    left = evaluate(dataset, "srif", matcher=say_identity, as_they_lie=True)
    moved = [record["motion"] is not None for record in turned.records]
    assert any(moved)
    assert all(record["motion"] is None for record in left.records)
    for was_moved, record in zip(moved, left.records, strict=True):
        if was_moved:
            assert record["best_truth_error_px"] < 5.0


# --- mmim --------------------------------------------------------------------------------------


def test_mmim_mean_is_the_plain_mean_of_the_modalities(dataset: Path) -> None:
    rows = evaluate(dataset, "mmim", matcher=say_identity).rows
    assert [row["group"] for row in rows] == ["optical-sar", "optical-map", "mean of modalities"]
    # Identity is exact for the maps and 15 px off for the shifted pairs.
    assert [row["own_auc_10"].value for row in rows] == pytest.approx([0.0, 1.0, 0.5])
    assert [row["unsorted_auc_10"].value for row in rows] == pytest.approx([0.0, 1.0, 0.5])


# --- sub ---------------------------------------------------------------------------------------


def test_correlation_recovers_constructed_motion_to_sub_pixel(dataset: Path) -> None:
    result = evaluate(dataset, "sub", matcher=partial(correlate, weakest=0.0), limit=2)
    row = result.rows[-1]
    assert row["answered"] == 1.0
    assert row["median_px"].value < 0.6
    assert len(result.records[0]["repeat_px"]) == SUB_VERSIONS


def test_unanswered_versions_are_infinite_not_left_out(dataset: Path) -> None:
    row = evaluate(dataset, "sub", matcher=know_nothing, limit=1).rows[-1]
    assert row["answered"] == 0.0
    assert row["median_px"].value == np.inf


def test_being_wrong_in_the_same_way_every_time_is_not_precision(dataset: Path) -> None:
    def far_off(image0, image1):
        answer = correlate(image0, image1, weakest=0.0)
        answer.transform[0, 2] += 20
        return answer

    row = evaluate(dataset, "sub", matcher=far_off, limit=2).rows[-1]
    assert row["answered"] == 1.0
    assert row["right"] == 0.0
    assert row["median_px"].value == np.inf


def locked_sums(amplitude_px: float, rng: np.random.Generator) -> np.ndarray:
    from rsfuse.matching.protocols import _phase_sums

    points0 = rng.uniform(0, 100, (4000, 2))
    expected = points0 + rng.uniform(-3, 3, (4000, 2))
    errors = 0.2 + amplitude_px * np.sin(2 * np.pi * (expected - points0))
    return _phase_sums(points0, expected + errors + rng.normal(0, 0.05, (4000, 2)), expected)


def test_phase_bias_is_the_amplitude_of_locking_whatever_the_offset(
    rng: np.random.Generator,
) -> None:
    assert phase_bias(locked_sums(0.12, rng)) == pytest.approx(0.12, abs=0.01)
    assert phase_bias(locked_sums(0.0, rng)) < 0.01


def test_phase_bias_without_points_is_not_a_number() -> None:
    assert np.isnan(phase_bias(np.zeros((2, 3, 4))))


# --- loop --------------------------------------------------------------------------------------


def test_loop_of_inverse_answers_closes(dataset: Path) -> None:
    row = evaluate(dataset, "loop", matcher=correlate, upright=False, limit=2).rows[0]
    assert row["group"] == "optical-sar"
    assert row["median_px"].value < 0.2


def test_loop_of_a_constant_answer_is_off_by_twice_its_shift(dataset: Path) -> None:
    def shift(image0, image1):
        transform = np.eye(3)
        transform[0, 2] = 1.5
        return Answer(transform)

    result = evaluate(dataset, "loop", matcher=shift)
    assert [r["closure_px"] for r in result.records] == pytest.approx([3.0] * 8)


def test_loop_that_closes_on_a_wrong_answer_is_told(dataset: Path) -> None:
    row = evaluate(dataset, "loop", matcher=say_identity).rows[-1]
    assert row["within_1"].value == 1.0
    assert row["closed_wrong"] == 1.0


def test_open_loop_is_a_failure(dataset: Path) -> None:
    row = evaluate(dataset, "loop", matcher=know_nothing, limit=2).rows[-1]
    assert row["answered"] == 0.0
    assert row["within_3"].value == 0.0


def test_pairs_that_share_their_reference_make_triples(dataset: Path) -> None:
    from dataclasses import replace

    pairs = list(read_pairs(dataset)[:3])
    pairs[1] = replace(pairs[1], reference=pairs[0].reference)
    kinds = [(case.id, case.kind) for case in loop_cases(pairs, 0, False)]
    assert kinds[3:] == [("tiny/Optical-SAR/0#triple", "triple")]


# --- trust -------------------------------------------------------------------------------------


def test_strangers_are_other_pairs_and_everyone_is_cut_once(dataset: Path) -> None:
    pairs = read_pairs(dataset)
    cases = trust_cases(pairs, 0, False)
    kinds = [case.kind for case in cases]
    assert (kinds.count("true"), kinds.count("unrelated"), kinds.count("disjoint")) == (8, 8, 8)
    for case in cases:
        if case.kind == "unrelated":
            assert case.partner is not None
            assert case.partner.id != case.pair.id
            assert case.partner.group == case.pair.group


def test_always_saying_yes_accepts_every_false_pair(dataset: Path) -> None:
    row = evaluate(dataset, "trust", matcher=say_identity).rows[-1]
    assert row["false_pairs"] == 16
    assert row["false_accept"].value == 1.0
    assert row["accepted_wrong"] == 1.0
    assert row["ece"] == pytest.approx(0.6)
    assert row["brier"] == pytest.approx(0.36)
    assert row["tie_ece"] == pytest.approx(0.6)


def test_refusing_everything_accepts_nothing_true_or_false(dataset: Path) -> None:
    row = evaluate(dataset, "trust", matcher=know_nothing).rows[-1]
    assert row["false_accept"].value == 0.0
    assert row["true_refused"] == 1.0
    assert row["ece"] == 0.0


def test_matcher_that_sees_the_difference_separates_true_from_false(dataset: Path) -> None:
    row = evaluate(dataset, "trust", matcher=correlate).rows[0]
    assert row["group"] == "optical-sar"
    assert row["false_accept"].value == 0.0
    assert row["true_accept"].value == 1.0
    assert row["auroc"] == 1.0


# --- running and writing -----------------------------------------------------------------------


def same(first: Evaluation, second: Evaluation) -> bool:
    clean = [
        [{k: v for k, v in record.items() if k != "seconds"} for record in result.records]
        for result in (first, second)
    ]
    return json.dumps(clean[0], default=str) == json.dumps(clean[1], default=str)


def test_same_seed_repeats_and_another_seed_moves_pairs_differently(dataset: Path) -> None:
    first = evaluate(dataset, "srif", matcher=say_identity)
    assert same(first, evaluate(dataset, "srif", matcher=say_identity))
    assert not same(first, evaluate(dataset, "srif", matcher=say_identity, seed=1))


def test_limit_does_not_change_what_happens_to_the_pairs_it_keeps(dataset: Path) -> None:
    whole = {r["id"]: r["motion"] for r in evaluate(dataset, "srif", matcher=say_identity).records}
    for record in evaluate(dataset, "srif", matcher=say_identity, limit=4).records:
        assert whole[record["id"]] == record["motion"]


def test_workers_give_the_same_records_in_the_same_order_on_one_thread_each(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers import the matcher by name, so it is put into a module of its own.
    module = tmp_path / "held_matcher.py"
    module.write_text(
        "import os\nimport cv2\nimport numpy as np\n"
        "from rsfuse.matching.protocols import Answer\n"
        "def held(image0, image1):\n"
        "    one = os.environ['OMP_NUM_THREADS'] == '1' and cv2.getNumThreads() == 1\n"
        "    return Answer(np.eye(3), confidence=float(one))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    import held_matcher  # type: ignore[import-not-found]

    result = evaluate(dataset, "srif", matcher=held_matcher.held, workers=2, limit=4)
    assert [r["confidence"] for r in result.records] == [1.0] * 4
    assert [r["id"] for r in result.records] == [p.id for p in read_pairs(dataset, limit=4)]
    import os

    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_worker_that_dies_is_an_error_in_three_beats(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dying_matcher.py").write_text(
        "import os\ndef die(image0, image1):\n    os._exit(9)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import dying_matcher  # type: ignore[import-not-found]

    with pytest.raises(RsfuseError, match="a worker process ended"):
        evaluate(dataset, "srif", matcher=dying_matcher.die, workers=2, limit=2)


def test_progress_counts_to_the_total(dataset: Path) -> None:
    steps: list[tuple[int, int]] = []
    evaluate(
        dataset,
        "srif",
        matcher=know_nothing,
        limit=3,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_every_protocol_writes_json_table_and_figure(
    dataset: Path, tmp_path: Path, protocol: str
) -> None:
    evaluate(dataset, protocol, matcher=say_identity, limit=4, out_dir=tmp_path)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["format"] == "rsfuse-evaluation"
    assert content["protocol"] == protocol
    assert content["parameters"]["seed"] == 0
    assert len(content["records"]) >= 4
    table = (tmp_path / "table.txt").read_text().splitlines()
    assert len(table) == 2 + len(content["rows"])
    figure = ElementTree.parse(tmp_path / "figure.svg").getroot()
    assert len(figure.findall("{http://www.w3.org/2000/svg}polyline")) >= 1


def test_interval_is_written_with_its_bounds(dataset: Path, tmp_path: Path) -> None:
    evaluate(dataset, "srif", matcher=say_identity, limit=4, out_dir=tmp_path)
    row = json.loads((tmp_path / "metrics.json").read_text())["rows"][0]
    assert set(row["success"]) == {"value", "lower", "upper"}


def test_unknown_protocol_names_the_known_ones(dataset: Path) -> None:
    with pytest.raises(InputError, match="no protocol 'best'") as caught:
        evaluate(dataset, "best", matcher=say_identity)
    assert "srif" in caught.value.why


def test_upright_belongs_to_srif_alone(dataset: Path) -> None:
    with pytest.raises(InputError, match="no upright form"):
        evaluate(dataset, "loop", matcher=say_identity, upright=True)


def test_no_workers_is_an_error(dataset: Path) -> None:
    with pytest.raises(InputError, match="number of workers is 0"):
        evaluate(dataset, "srif", matcher=say_identity, workers=0)
