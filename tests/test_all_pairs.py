"""Measures of all pairs at once agree with their definitions, pair by pair and image by image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import InMemory, score

from kt.complementarity import agreement, expertise, similarity
from kt.complementarity.expertise import ClassVectors
from kt.complementarity.spec import ComplementaritySpec
from kt.errors import KtError


def zoo_of(models: int = 4, n: int = 37, classes: int = 3, seed: int = 0) -> InMemory:
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, classes))
    logits = {f"m{i}": (3 * shared + rng.normal(size=(n, classes))).astype(np.float16) for i in range(models)}
    common = rng.normal(size=(n, 4))
    features = {
        f"m{i}": (common @ rng.normal(size=(4, 5 + i)) + rng.normal(size=(n, 5 + i)) + 7).astype(np.float16)
        for i in range(models)
    }
    return InMemory(logits, features)


def labels_for(images: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 3, images)


def filled(measure, source: InMemory, changed: Sequence[int] | None = None, **more: np.ndarray) -> np.ndarray:
    into = np.full((len(source.of),) * 2, np.nan)
    if measure in (agreement.capa, agreement.top_flips):
        more = {"labels": labels_for(source.images), **more}
    with ThreadPoolExecutor(2) as pool:
        measure(source, into, range(len(into)) if changed is None else changed, pool, **more)
    return into


def probabilities(logits: np.ndarray) -> list[list[float]]:
    rows = []
    for z in logits.astype(float).tolist():
        p = [math.exp(v - max(z)) for v in z]
        rows.append([v / sum(p) for v in p])
    return rows


def plain_js(t: np.ndarray, s: np.ndarray) -> float:
    total = 0.0
    for p, q in zip(probabilities(t), probabilities(s), strict=True):
        for a, b in zip(p, q, strict=True):
            total += sum(x / 2 * math.log(2 * x / (a + b)) for x in (a, b) if x > 0)
    return total / len(t)


def plain_leep(t: np.ndarray, s: np.ndarray) -> float:
    labels, p = t.argmax(1).tolist(), probabilities(s)
    classes = range(t.shape[1])
    joint = [
        [sum(row[z] for y, row in zip(labels, p, strict=True) if y == label) for z in classes] for label in classes
    ]
    marginal = [sum(joint[y][z] for y in classes) for z in classes]
    expected = [sum(joint[y][z] / marginal[z] * row[z] for z in classes) for y, row in zip(labels, p, strict=True)]
    return sum(map(math.log, expected)) / len(labels)


def plain_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Unbiased HSIC as Nguyen et al. 2021 write it in equation 3."""
    n, one = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    sums = one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    return (np.trace(k @ m) + sums) / (n * (n - 3))


def plain_cka(t: np.ndarray, s: np.ndarray) -> float:
    batches = max(1, len(t) // similarity.BATCH)
    parts = [[x[batch::batches].astype(float) for x in (t, s)] for batch in range(batches)]
    kernels = [(a @ a.T, b @ b.T) for a, b in parts]
    hsic = [np.mean([plain_hsic(ks[i], ks[j]) for ks in kernels]) for i, j in ((0, 1), (0, 0), (1, 1))]
    return float(hsic[0] / np.sqrt(hsic[1] * hsic[2]))


def plain_capa(t: np.ndarray, s: np.ndarray) -> float:
    p, q, labels, n, classes = probabilities(t), probabilities(s), labels_for(len(t)).tolist(), len(t), t.shape[1]
    observed = sum(a * b for x, y in zip(p, q, strict=True) for a, b in zip(x, y, strict=True)) / n
    right = [sum(row[label] for row, label in zip(rows, labels, strict=True)) / n for rows in (p, q)]
    expected = right[0] * right[1] + (1 - right[0]) * (1 - right[1]) / (classes - 1)
    return (observed - expected) / (1 - expected)


def plain_top_flips(t: np.ndarray, s: np.ndarray) -> float:
    flips = 0
    for z, w, label in zip(t.tolist(), s.tolist(), labels_for(len(t)).tolist(), strict=True):
        best = [sorted(range(len(row)), key=lambda c, row=row: -row[c])[:5] for row in (z, w)]
        flips += label in best[0] and label not in best[1]
    return 100 * flips / len(t)


MEASURES = {
    "capa": (agreement.capa, "of", plain_capa),
    "pos_flips_top5": (agreement.top_flips, "of", plain_top_flips),
    "js_divergence": (similarity.js_divergence, "of", plain_js),
    "leep": (similarity.leep, "of", plain_leep),
    "cka": (similarity.cka, "features_of", plain_cka),
}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "HELD_PROBABILITIES", 60)
    monkeypatch.setattr(similarity, "CHUNK", 60)
    monkeypatch.setattr(similarity, "TILE", 40)
    monkeypatch.setattr(similarity, "ROWS", 8)
    monkeypatch.setattr(similarity, "JOINT", 2 * 9)
    monkeypatch.setattr(similarity, "BATCH", 9)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", MEASURES)
def test_measures_of_all_pairs_agree_with_their_definitions(name):
    measure, what, plain = MEASURES[name]
    source = zoo_of(classes=9 if name == "pos_flips_top5" else 3)
    arrays = list(getattr(source, what).values())
    found = filled(measure, source)
    for i, t in enumerate(arrays):
        for j, s in enumerate(arrays):
            if i != j:
                assert found[i, j] == pytest.approx(plain(t, s), rel=2e-5, abs=1e-6), (i, j)


@pytest.mark.parametrize("name", MEASURES)
def test_chunks_and_what_is_known_already_do_not_change_results(name, request):
    measure, source = MEASURES[name][0], zoo_of(classes=9 if name == "pos_flips_top5" else 3)
    whole = filled(measure, source)
    if name != "cka":  # other minibatches are another estimate
        request.getfixturevalue("small_chunks")
    off_diagonal = ~np.eye(4, dtype=bool)
    np.testing.assert_allclose(filled(measure, source)[off_diagonal], whole[off_diagonal], rtol=1e-5)
    for changed in ([2], [0, 3], []):
        part = filled(measure, source, changed)
        new = np.zeros((4, 4), bool)
        new[changed, :] = new[:, changed] = True
        new &= off_diagonal
        np.testing.assert_allclose(part[new], whole[new], rtol=1e-5)
        assert np.isnan(part[~new & off_diagonal]).all()


def test_capa_is_that_of_its_authors_package():
    metrics = pytest.importorskip("lmsim.metrics")
    source = zoo_of(3, n=60, classes=4)
    labels, found = labels_for(60), filled(agreement.capa, source)
    p = {name: np.array(probabilities(logits)) for name, logits in source.of.items()}
    for i, one in enumerate(p.values()):
        for j, other in enumerate(p.values()):
            if i != j:
                assert found[i, j] == pytest.approx(metrics.CAPA().compute_k(list(one), list(other), labels), abs=1e-6)


def test_capa_by_hand_and_of_models_that_leave_nothing_to_chance():
    def sure(*classes: int) -> np.ndarray:
        return 60 * np.eye(3, dtype=np.float16)[list(classes)]

    labels = np.array([0, 1, 2, 0])
    models = {"right": sure(0, 1, 2, 0), "half": sure(0, 1, 0, 2), "same": sure(0, 1, 0, 2), "other": sure(1, 2, 2, 0)}
    found = filled(agreement.capa, InMemory(models), labels=labels)
    assert found[1, 2] == pytest.approx(1)  # observed 1, whatever is expected
    assert found[0, 1] == pytest.approx(0)  # observed 1/2, expected 1 · 1/2 + 0
    assert found[1, 3] == pytest.approx((0 - 0.375) / (1 - 0.375))  # never the same; 1/2 · 1/2 + 1/2 · 1/2 / 2
    assert np.isnan(filled(agreement.capa, InMemory({"a": sure(0), "b": sure(0)}), labels=np.array([0]))[0, 1])
    assert np.isnan(
        filled(agreement.capa, InMemory(dict.fromkeys("ab", np.zeros((2, 1)))), labels=np.zeros(2, int))[0, 1]
    )


def test_negative_top_flips_are_the_positive_ones_the_other_way_round():
    source, labels = zoo_of(2, n=200, classes=20), np.random.default_rng(0).integers(0, 20, 200)
    found = filled(agreement.top_flips, source, labels=labels)
    share = [(source.top(m, slice(0, 200)) == labels[:, None]).any(1).mean() for m in (0, 1)]
    assert found[0, 1] - found[1, 0] == pytest.approx(100 * (share[0] - share[1]))
    assert filled(agreement.top_flips, zoo_of(2, classes=3))[0, 1] == 0  # five classes are all there are


def test_js_divergence_by_hand():
    sure = {"a": [[60.0, 0.0]], "b": [[0.0, 60.0]], "c": [[0.0, 0.0]], "d": [[60.0, 0.0]]}
    found = filled(similarity.js_divergence, InMemory({k: np.array(v, np.float16) for k, v in sure.items()}))
    half = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2)
    assert found[0, 1:] == pytest.approx([math.log(2), half, 0], abs=1e-6)


def test_js_divergence_of_logits_far_apart_is_finite_and_at_most_ln_2():
    far = np.array([[6e4, -6e4, 0], [-6e4, 6e4, 0]], np.float16)
    found = filled(similarity.js_divergence, InMemory({"a": far, "b": far[::-1].copy()}))
    assert found[0, 1] == pytest.approx(math.log(2), rel=1e-6)


def test_leep_is_zero_where_the_student_is_sure_and_renames_the_teachers_classes():
    teacher = 60 * np.eye(3, dtype=np.float16)[[0, 1, 2, 0, 1, 2]]
    found = filled(
        similarity.leep, InMemory({"t": teacher, "s": teacher[:, [2, 0, 1]], "blind": np.zeros_like(teacher)})
    )
    assert found[0, 1] == pytest.approx(0, abs=1e-6)
    assert found[0, 2] == pytest.approx(-math.log(3))  # a student that knows nothing is left with chance


def test_cka_does_not_see_rotation_scale_and_shift_and_is_near_zero_for_unrelated_features():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 8))
    turned = 3 * x @ np.linalg.qr(rng.normal(size=(8, 8)))[0] + 5
    source = InMemory({}, {"a": x, "b": turned, "c": rng.normal(size=(600, 8))})
    source.of = {name: np.zeros((600, 2)) for name in "abc"}
    found = filled(similarity.cka, source)
    assert found[0, 1] == pytest.approx(1, abs=1e-5)
    assert abs(found[0, 2]) < 0.02  # the biased estimate would be about 0.03 at n = 300
    constant = InMemory(source.of, source.features_of | {"b": np.ones((600, 8))})
    assert np.isnan(filled(similarity.cka, constant)[0, 1])


def test_cka_says_when_there_are_too_few_images():
    few = InMemory({"a": np.zeros((3, 2)), "b": np.zeros((3, 2))}, {"a": np.zeros((3, 2)), "b": np.zeros((3, 2))})
    with pytest.raises(KtError, match="'cka' needs at least 4 images, not 3"):
        filled(similarity.cka, few)


def test_similarity_of_areas_agrees_with_a_loop_over_pairs_of_classes():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, 3))
    found = ClassVectors.of(vectors, "")
    members = np.array([[1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0], [0] * 6, [1] * 6], bool)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row, value in zip(members, found.similarity(members), strict=True):
        chosen = unit[row]
        cosines = [a @ b for i, a in enumerate(chosen) for b in chosen[:i]]
        assert value == pytest.approx(np.mean(cosines) if cosines else math.nan, abs=1e-6, nan_ok=True)
    assert found.mean() == pytest.approx(found.similarity(members)[-1])


def test_classes_without_a_vector_are_left_out_of_similarities():
    found = ClassVectors.of(np.array([[2.0, 0], [0, 0], [1, 1]]), "")
    assert found.similarity(np.array([[True] * 3, [True, True, False]])) == pytest.approx(
        [math.sqrt(0.5), math.nan], nan_ok=True
    )


def test_default_class_vectors_are_centred_mean_logits():
    source, labels = zoo_of(classes=4), np.tile([0, 1, 2], 13)[:37]  # no image of class 3
    logits = source.of["m1"].astype(float)
    means = np.array([logits[labels == c].mean(0) for c in range(3)])
    expected = ClassVectors.of(np.vstack([means - means.mean(0), np.zeros(4)]), "")
    found = expertise.mean_logits(source, 1, labels, 4)
    np.testing.assert_allclose(found.unit, expected.unit, atol=1e-5)
    assert found.digest != expertise.mean_logits(source, 0, labels, 4).digest


def save_npz(path, vectors):
    np.savez(path, vectors=vectors)


def save_parquet(path, vectors):
    order = np.random.default_rng(0).permutation(len(vectors))
    table = pa.table({"class": pa.array(order), "vector": [vectors[c].tolist() for c in order]})
    pq.write_table(table, path)


@pytest.mark.parametrize(("name", "save"), [("v.npz", save_npz), ("v.parquet", save_parquet)])
def test_class_vectors_come_from_a_file(tmp_path, name, save):
    vectors = np.random.default_rng(1).normal(size=(3, 2))
    save(tmp_path / name, vectors)
    found = expertise.load(tmp_path / name, 3)
    np.testing.assert_allclose(found.unit, ClassVectors.of(vectors, "").unit)
    spec = ComplementaritySpec(class_embeddings=str(tmp_path / name))
    source, labels = zoo_of(), np.tile([0, 1, 2], 13)[:37]
    scores = score(source, labels, 3, spec)
    assert scores["class_similarity"].tolist() == pytest.approx([found.mean()] * len(scores))
    row = scores[scores["expertise_50"] == 2].iloc[0]
    first, second = row["expertise"]
    assert row["expertise_similarity_50"] == pytest.approx(found.unit[first] @ found.unit[second], abs=1e-6)
    with pytest.raises(KtError, match=r"class_embeddings: .*\[3, 2\] float64, but \[4, width\] numbers are needed"):
        expertise.load(tmp_path / name, 4)
    vectors[1] = 0
    save(tmp_path / name, vectors)
    with pytest.raises(KtError, match=r"a zero vector, or one that is not finite, for the classes 1$"):
        expertise.load(tmp_path / name, 3)


def test_class_vectors_in_a_file_that_cannot_be_read_are_an_error(tmp_path):
    (tmp_path / "v.npz").write_text("no")
    np.savez(tmp_path / "w.npz", other=1)
    pq.write_table(pa.table({"class": [0, 2], "vector": [[1.0], [2.0]]}), tmp_path / "v.parquet")
    for name in ("v.npz", "w.npz", "v.parquet", "none.parquet"):
        with pytest.raises(KtError, match=rf"complementarity.class_embeddings: .*{name}: cannot be read"):
            expertise.load(tmp_path / name, 2)
