"""What `targets info` says of shards, against distributions that are known whole."""

import numpy as np
import pytest

from stillhouse.ledger.targets import Binding, ShardWriter, TargetReader, Targets
from stillhouse.ledger.targets.measure import measure

SIZE = 60


def distributions(seed, count):
    source = np.random.default_rng(seed)
    return source, source.dirichlet(np.full(SIZE, 0.15), count)


def binding(head, draws=0):
    return Binding("teacher", "r", "t" * 64, "", SIZE, head, draws)


def reader(folder, bound, positions, rows=3):
    """A shard with the positions shared out over rows; each is (ids, probabilities, tail)."""
    with ShardWriter(folder, bound) as writer:
        for number in range(rows):
            mine = positions[number::rows]
            offsets = np.cumsum([0, *(len(ids) for ids, _, _ in mine)])
            with np.errstate(divide="ignore"):
                writer.add(
                    str(number),
                    np.array([number], np.int32),
                    Targets(
                        offsets,
                        np.concatenate([ids for ids, _, _ in mine]).astype(np.int32),
                        np.log(np.concatenate([p for _, p, _ in mine])).astype(np.float32),
                        np.log([tail for _, _, tail in mine]).astype(np.float32),
                    ),
                )
        sealed = writer.seal()
    return TargetReader(folder, [sealed.stem], bound)


def likeliest(probabilities, head):
    ids = np.argsort(-probabilities, kind="stable")[:head]
    return ids, probabilities[ids], 1.0 - probabilities[ids].sum()


def test_the_kept_mass_and_its_lowest_tenth_are_those_of_the_distributions(tmp_path):
    _, exact = distributions(1, 4000)
    made = [likeliest(p, 4) for p in exact]
    unknown = (np.zeros(0), np.zeros(0), 1.0)
    found = measure([reader(tmp_path, binding(4), [*made, *[unknown] * 50])])
    kept = np.array([1.0 - tail for _, _, tail in made])
    assert (found.rows, found.positions, found.known, found.entries) == (3, 4050, 4000, 16000)
    assert found.kept == pytest.approx(kept.mean(), abs=1e-4)
    assert found.kept_p10 == pytest.approx(np.quantile(kept, 0.1), abs=1e-3)
    assert found.bias == pytest.approx(1 - kept.mean(), abs=1e-4)
    assert found.variance == 0.0
    assert found.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_no_student_makes_the_gradient_further_off_than_the_bound(tmp_path):
    """With a bucket for the tail it is that of a target whose tail is shared out as the student's."""
    source, exact = distributions(2, 300)
    made = [likeliest(p, 3) for p in exact]
    found = measure([reader(tmp_path, binding(3), made)])
    worst = 0.0
    for _ in range(20):
        student = source.dirichlet(np.full(SIZE, 0.05), len(exact))
        off = []
        for truth, mine, (ids, kept, tail) in zip(exact, student, made, strict=True):
            bucketed = mine.copy()
            bucketed[ids] = 0.0
            bucketed *= tail / max(bucketed.sum(), 1e-300)
            bucketed[ids] = kept
            off.append(np.abs(bucketed - truth).sum() / 2)
        worst = max(worst, float(np.mean(off)))
    assert 0.5 * found.bias < worst <= found.bias + 1e-4


@pytest.mark.parametrize(("head", "draws"), [(0, 12), (3, 6)])
def test_the_variance_of_draws_is_estimated_without_bias(tmp_path, head, draws):
    source, exact = distributions(3, 6000)
    made, truth = [], []
    for p in exact:
        ids, kept, rest = likeliest(p, head)
        others = p.copy()
        others[ids] = 0.0
        others /= others.sum()
        counts = source.multinomial(draws, others)
        drawn = np.flatnonzero(counts)
        weights = rest * counts[drawn] / draws
        made.append((np.concatenate([ids, drawn]), np.concatenate([kept, weights]), 0.0))
        truth.append(rest**2 / draws * (1 - (others**2).sum()))
    found = measure([reader(tmp_path, binding(head, draws), made)])
    assert found.variance == pytest.approx(np.mean(truth), rel=0.03)
    assert (found.kept, found.bias) == (pytest.approx(1.0), pytest.approx(0.0))


def test_what_cannot_be_told_is_not_told(tmp_path):
    one = [(np.array([5]), np.array([1.0]), 0.0)] * 3
    assert measure([reader(tmp_path, binding(0, 1), one)]).variance is None
    nothing = measure([])
    assert (nothing.rows, nothing.kept, nothing.kept_p10, nothing.bias, nothing.variance) == (0, *[None] * 4)
