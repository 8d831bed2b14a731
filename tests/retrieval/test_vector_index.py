"""The vector index against plain matrix products, through its whole life."""

import json
import os
import subprocess
import sys

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.retrieval.vector_index import VectorIndex
from tests.support.processes import TIME_LIMIT

WIDTH = 16


def documents(count, start=0):
    return {f"d{index:04}": f"text {index}" for index in range(start, start + count)}


def encode(texts, seed=0):
    """A vector that the text determines; a few values only, so that ties occur."""
    rows = [np.random.default_rng([seed, *map(ord, text)]).integers(-3, 4, WIDTH) for text in texts]
    return torch.tensor(np.array(rows), dtype=torch.float32)


def queries(count=7, seed=9):
    return torch.randint(-3, 4, (count, WIDTH), generator=torch.Generator().manual_seed(seed)).float()


def expected(vectors, asked, names, metric, top_k):
    """Scores and ids by float64 products, the larger id first among equals."""
    vectors, asked = vectors.double().numpy(), asked.double().numpy()
    if metric == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        asked = asked / np.linalg.norm(asked, axis=1, keepdims=True)
    products = asked @ vectors.T
    scores = -((asked[:, None] - vectors) ** 2).sum(-1) if metric == "l2" else products
    order = [sorted(range(len(names)), key=lambda d: (row[d], names[d]), reverse=True)[:top_k] for row in scores]
    return np.array([row[places] for row, places in zip(scores, order, strict=True)]), [
        [names[place] for place in places] for places in order
    ]


def built(count=200, **settings_):
    return VectorIndex(**settings_).build(encode, documents(count), 64, progress=False)


@pytest.mark.parametrize("metric", ["inner_product", "l2"])
@pytest.mark.parametrize("top_k", [1, 10, 199, 200, 5000])
def test_exact_with_ties_at_the_cut(metric, top_k):
    index, asked = built(metric=metric), queries()
    scores, ids = index.search(asked, top_k)
    wanted = expected(encode(documents(200).values()), asked, index.ids, metric, top_k)
    assert scores.shape == (7, min(top_k, 200))
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, wanted[0])  # small whole numbers are exact in float32
    assert ids == wanted[1]


def test_cosine():
    index, asked = built(metric="cosine"), queries()
    scores, _ = index.search(asked, 10)
    np.testing.assert_allclose(
        scores, expected(encode(documents(200).values()), asked, index.ids, "cosine", 10)[0], atol=1e-6
    )
    zero, _ = index.search(torch.zeros(1, WIDTH), 3)
    assert zero.tolist() == [[0.0, 0.0, 0.0]]
    own, ids = index.search(5 * encode(["text 17"]), 1)
    assert (own.item(), ids) == (pytest.approx(1), [["d0017"]])


def test_many_documents_alike_are_cut_by_id():
    index = VectorIndex().build(lambda texts: torch.ones(len(texts), 3), documents(999), progress=False)
    scores, ids = index.search(torch.ones(3, 3), 4)
    assert scores.tolist() == [[3.0] * 4] * 3
    assert ids == [["d0998", "d0997", "d0996", "d0995"]] * 3


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 30), st.integers(1, 40), st.integers(0, 5), st.integers(0, 10_000))
def test_any_size(count, top_k, asked, seed):
    vectors = torch.randint(-2, 3, (count, 4), generator=torch.Generator().manual_seed(seed)).float()
    rows = torch.randint(-2, 3, (asked, 4), generator=torch.Generator().manual_seed(seed + 1)).float()
    index = VectorIndex(device="cpu")
    index.add_vectors(list(documents(count)), vectors)
    scores, ids = index.search(rows, top_k)
    assert scores.shape == (asked, min(top_k, count))
    if asked and count:
        wanted = expected(vectors, rows, index.ids, "inner_product", top_k)
        np.testing.assert_array_equal(scores, wanted[0])
        assert ids == wanted[1]
    else:
        assert ids == [[]] * asked


@pytest.mark.parametrize("count", [1024, 1500])
def test_many_queries_are_searched_in_parts(count):
    index, asked = built(50), queries(count)
    scores, ids = index.search(asked, 5, progress=True)
    assert scores.shape == (count, 5)
    assert ids == expected(encode(documents(50).values()), asked, index.ids, "inner_product", 5)[1]


def test_batches_make_no_difference_and_the_encoder_runs_without_gradients():
    sizes, weight = [], torch.ones(WIDTH, requires_grad=True)

    def watched(texts):
        sizes.append(len(texts))
        assert isinstance(texts, list)
        vectors = encode(texts) * weight
        assert not vectors.requires_grad
        return vectors

    one = VectorIndex().build(watched, documents(70), 32, progress=True)
    assert sizes == [32, 32, 6]
    two = VectorIndex().build(encode, documents(70), 1000, progress=False)
    assert one.search(queries(), 9)[1] == two.search(queries(), 9)[1]
    assert len(one) == 70
    assert one.width == WIDTH


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, np.float16, np.float64, np.int64])
def test_any_type_of_number(kind):
    vectors, asked = encode(documents(50).values()), queries()
    cast = (lambda x: x.to(kind)) if isinstance(kind, torch.dtype) else (lambda x: x.numpy().astype(kind))
    index, plain = VectorIndex(), VectorIndex()
    index.add_vectors(list(documents(50)), cast(vectors))
    plain.add_vectors(list(documents(50)), vectors)
    assert index.search(cast(asked), 5)[1] == plain.search(asked, 5)[1]
    strided = vectors.T.contiguous().T.requires_grad_()
    assert (
        VectorIndex().build(lambda texts: strided, documents(50), progress=False).search(asked, 5)[1]
        == plain.search(asked, 5)[1]
    )


def test_nothing_is_searched_for_nothing():
    for index in (VectorIndex(), VectorIndex().build(encode, {}), VectorIndex("IVF16,Flat").build(encode, {})):
        scores, ids = index.search(queries(2), 3)
        assert (scores.shape, ids, len(index), index.width) == ((2, 0), [[], []], 0, None)
    scores, ids = built(5).search(torch.empty(0, WIDTH), 3)
    assert (scores.shape, ids) == ((0, 3), [])


def test_added_documents_are_found():
    index = built(100)
    assert index.search(encode(["text 150"]), 1)[1] != [["d0150"]]
    index.add(encode, documents(100, 100), progress=False)
    whole = built(200)
    assert index.ids == whole.ids
    assert index.search(queries(), 20)[1] == whole.search(queries(), 20)[1]
    index.add(encode, {}, progress=False)
    assert len(index) == 200


def test_refresh_follows_the_encoder():
    index = built(100)
    index.add(encode, documents(20, 100), progress=False)
    before = index.search(queries(), 5)

    def other(texts):
        return encode(texts, 1)

    assert index.refresh(other, progress=False) is index
    after, wanted = index.search(queries(), 5), VectorIndex().build(other, documents(120), progress=False)
    assert after[1] != before[1]
    assert after[1] == wanted.search(queries(), 5)[1]
    wider = index.refresh(lambda texts: torch.ones(len(texts), 3), progress=False)
    assert wider.width == 3


def test_what_fails_leaves_the_index_as_it_was():
    index = built(100)
    before = index.search(queries(), 5)

    def breaks(texts):
        if "text 90" in texts:
            raise RuntimeError("out of memory")
        return encode(texts, 1)

    for work in (index.refresh, lambda encoder: index.build(encoder, documents(100), 16, progress=False)):
        with pytest.raises(RuntimeError, match="out of memory"):
            work(breaks)
    with pytest.raises(RuntimeError, match="out of memory"):
        index.add(breaks, {"x": "new", "y": "text 90"}, 1, progress=False)
    with pytest.raises(ValueError, match="twice"):
        index.add(encode, {"new": "new", "d0003": "again"}, progress=False)
    after = index.search(queries(), 5)
    assert len(index) == 100
    assert after[1] == before[1]
    index.refresh(encode, progress=False)
    assert len(index) == 100


def test_a_run_can_be_measured():
    index = built(5)
    found = index.run(["q1", "q2"], queries(2), 9)
    scores, ids = index.search(queries(2), 9)
    assert [list(row) for row in found.values()] == ids
    assert [list(row.values()) for row in found.values()] == scores.tolist()
    with pytest.raises(ValueError, match=r"^queries must be one id for each of the 2 vectors, got 1: [^\n]+\.$"):
        index.run(["q1"], queries(2), 9)


@pytest.mark.parametrize("factory", ["IVF4,Flat", "HNSW16", "PCA8,Flat", "SQ8", "PQ4x4", "IVF4,PQ4x4"])
@pytest.mark.parametrize("metric", ["inner_product", "l2", "cosine"])
def test_other_factories(tmp_path, factory, metric):
    index = built(400, factory=factory, metric=metric)
    scores, ids = index.search(queries(), 10)
    assert scores.shape == (7, 10)
    assert all(len(set(row)) == len(row) for row in ids)
    assert (np.diff(scores[np.isfinite(scores).all(1)]) <= 0).all()
    index.save(tmp_path)
    again = VectorIndex.load(tmp_path)
    np.testing.assert_array_equal(again.search(queries(), 10)[0], scores)
    assert again.search(queries(), 10)[1] == ids


def test_search_parameters_reach_the_index(tmp_path):
    asked = queries(20)
    exact = built(400).search(asked, 10)[1]
    assert built(400, factory="IVF16,Flat").search(asked, 10)[1] != exact
    index = built(400, factory="IVF16,Flat", parameters="nprobe=16")
    index.save(tmp_path)
    for found in (index, VectorIndex.load(tmp_path), index.refresh(encode, progress=False)):
        np.testing.assert_array_equal(found.search(asked, 10)[0], built(400).search(asked, 10)[0])


def test_fewer_found_than_asked_for_are_marked():
    vectors = torch.cat([torch.arange(80.0).view(40, 2) / 80, torch.full((3, 2), 100.0)])
    index = VectorIndex("IVF2,Flat", "l2")
    index.add_vectors(list(documents(43)), vectors)
    scores, ids = index.search(torch.full((1, 2), 99.0), 5)
    assert ids == [["d0042", "d0041", "d0040"]]
    assert scores.tolist() == [[-2.0, -2.0, -2.0, -np.inf, -np.inf]]
    assert index.run(["q"], torch.full((1, 2), 99.0), 5) == {"q": dict.fromkeys(ids[0], -2.0)}


def test_saved_and_loaded(tmp_path):
    index = built(100, metric="l2")
    index.save(tmp_path / "new" / "index")
    again = VectorIndex.load(tmp_path / "new" / "index")
    assert (again.ids, again.metric, again.factory, again.width) == (index.ids, "l2", "Flat", WIDTH)
    assert again.search(queries(), 5)[1] == index.search(queries(), 5)[1]
    with pytest.raises(ValueError, match=r"^documents must be given to refresh [^\n]+ pass the 100 texts\.$"):
        again.refresh(encode)
    assert (
        again.refresh(encode, documents(100), progress=False).search(queries(), 5)[1] == index.search(queries(), 5)[1]
    )
    again.refresh(encode, progress=False)
    again.add_vectors(["é/1", "7"], queries(2))
    with pytest.raises(ValueError, match=r"^documents must be given"):
        again.refresh(encode)
    again.save(tmp_path / "new" / "index")
    assert VectorIndex.load(tmp_path / "new" / "index").ids[-2:] == ["é/1", "7"]
    assert sorted(path.suffix for path in (tmp_path / "new" / "index").iterdir()) == [".faiss", ".json"]
    VectorIndex(metric="cosine").save(tmp_path / "new" / "index")
    empty = VectorIndex.load(tmp_path / "new" / "index")
    assert (len(empty), empty.metric) == (0, "cosine")
    assert empty.refresh(encode) is empty
    assert [path.name for path in (tmp_path / "new" / "index").iterdir()] == ["index.json"]


@pytest.mark.parametrize("stop_at", ["write_index", "replace 1", "replace 2"])
def test_a_stopped_save_leaves_the_old_index(tmp_path, monkeypatch, stop_at):
    built(20).save(tmp_path)
    calls = []
    real = os.replace

    def replace(source, target):
        calls.append(target)
        if f"replace {len(calls)}" == stop_at:
            raise OSError("stopped")
        real(source, target)

    def write(index, path):
        raise OSError("stopped")

    monkeypatch.setattr("os.replace", replace)
    if stop_at == "write_index":
        monkeypatch.setattr(faiss, "write_index", write)
    with pytest.raises(ValueError, match=r"^cannot write .* \(stopped\): choose a folder"):
        built(30).save(tmp_path)
    monkeypatch.undo()
    assert len(VectorIndex.load(tmp_path)) == 20
    built(40).save(tmp_path)
    assert len(VectorIndex.load(tmp_path)) == 40
    assert len(list(tmp_path.iterdir())) == 2


def change(folder, **facts):
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


BREAKS = {
    "is missing": lambda folder: (folder / "index.json").unlink(),
    "cannot be read as JSON": lambda folder: (folder / "index.json").write_text("{"),
    "is not of format 1": lambda folder: change(folder, format=9),
    "has no usable 'ids'": lambda folder: change(folder, ids=None),
    "has ids that are not strings or not unique": lambda folder: change(folder, ids=["a", "a"]),
    "holds 20 vectors for 19 documents": lambda folder: change(folder, ids=list(documents(19))),
    "names 20 documents without vectors": lambda folder: change(folder, vectors=None),
    r"vectors-\w+.faiss is missing": lambda folder: next(folder.glob("*.faiss")).unlink(),
    "was changed or truncated": lambda folder: next(folder.glob("*.faiss")).write_bytes(b"IxFI"),
}


@pytest.mark.parametrize("how", BREAKS)
def test_broken_folders(tmp_path, how):
    built(20).save(tmp_path)
    BREAKS[how](tmp_path)
    with pytest.raises(ValueError, match=rf"^folder must hold an index .+ and .*{how}.*: save the index again\.$"):
        VectorIndex.load(tmp_path)


def test_folders_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^cannot write [^\n]+ \(Not a directory\): [^\n]+$"):
        built(3).save(tmp_path / "file" / "index")
    with pytest.raises(ValueError, match=r"^folder must hold an index [^\n]+ is missing: [^\n]+\.$"):
        VectorIndex.load(tmp_path / "none")


def vectors_like(rows, **places):
    found = torch.ones(rows, WIDTH)
    for value, place in places.items():
        found[place] = float(value)
    return found


WRONG = {
    "vectors must be finite vectors, got NaN or infinity in 2 of 4, first in row 1: ": lambda: built().search(
        vectors_like(4, nan=1, inf=2), 3
    ),
    "vectors must be vectors [n, width], got shape [16]: ": lambda: built().search(torch.ones(WIDTH), 3),
    "vectors must be [n, 16] like those in the index, got [2, 17]: ": lambda: built().search(torch.ones(2, 17), 3),
    "top_k must be at least 1, got 0: ": lambda: built().search(queries(), 0),
    "encode must be finite vectors, got NaN or infinity in 3 of 3, ": lambda: VectorIndex().build(
        lambda texts: torch.full((len(texts), 2), torch.nan), documents(3), progress=False
    ),
    "encode must return one vector for each text, got 1 vectors for 3 texts: ": lambda: VectorIndex().build(
        lambda texts: torch.ones(1, 2), documents(3), progress=False
    ),
    "encode must return vectors of one width, got 2 and 1: ": lambda: VectorIndex().build(
        lambda texts: torch.ones(len(texts), len(texts)), documents(3), 2, progress=False
    ),
    "vectors must be [n, 16] like those in the index, got [1, 3]: ": lambda: built().add(
        lambda texts: torch.ones(1, 3), {"x": ""}, progress=False
    ),
    "batch_size must be at least 1, got 0: ": lambda: VectorIndex().build(encode, documents(3), 0),
    "ids must be one for each of the 2 vectors, got 1: ": lambda: VectorIndex().add_vectors(["a"], torch.ones(2, 2)),
    "ids must be unique, got 'a' twice: ": lambda: VectorIndex().add_vectors(["a", "a"], torch.ones(2, 2)),
    "ids must be strings, got 7: ": lambda: VectorIndex().add_vectors([7], torch.ones(1, 2)),
    "factory must be a factory string of FAISS, got ": lambda: VectorIndex("Flatt"),
    "factory 'IVF16,Flat' needs at least 16 vectors to train on, got 10: ": lambda: built(10, factory="IVF16,Flat"),
    "factory 'PQ3' with metric 'l2' and width 16 is refused by FAISS (": lambda: built(factory="PQ3", metric="l2"),
    "factory 'IDMap,Flat' is refused by FAISS (": lambda: built(factory="IDMap,Flat"),
    "parameters 'nprobe=4' is refused by FAISS (": lambda: built(parameters="nprobe=4"),
    "metric must be inner_product, cosine or l2, got 'dot': ": lambda: VectorIndex(metric="dot"),
    "device must be auto, cpu or cuda, got 'gpu': ": lambda: VectorIndex(device="gpu"),
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_input_ends_in_one_line(line):
    with pytest.raises(ValueError) as error:
        WRONG[line]()
    text = str(error.value)
    assert text.startswith(line)
    assert "\n" not in text


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"^VectorIndex [^\n]+pip install 'saccade\[retrieval\]'\.$"):
        VectorIndex()


def test_the_module_is_imported_without_the_package():
    code = "import sys, saccade.retrieval.vector_index; assert 'faiss' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=TIME_LIMIT)
