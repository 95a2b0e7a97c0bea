"""Class labels: their null value, dropping, embedding, and the lists that a user writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sra_jax.conditioning import ClassLabels, drop
from sra_jax.conditioning.class_labels import choose_labels
from sra_jax.core.errors import InputError
from sra_jax.core.shapes import FieldSpec

LABELS = ClassLabels(5)


def test_the_null_class_comes_after_the_others():
    null = LABELS.null(3)
    assert null.keys() == {"labels"} and null["labels"].dtype == jnp.int32
    assert null["labels"].tolist() == [5, 5, 5]


def test_a_record_has_one_label():
    assert LABELS.fields() == {"labels": FieldSpec((), "int32")}


def test_dropped_examples_get_the_null_class():
    condition = {"labels": jnp.array([3, 0, 4, 1], jnp.int32)}
    dropped = drop(LABELS, condition, jnp.array([False, True, False, True]))
    assert dropped.keys() == {"labels"} and dropped["labels"].dtype == jnp.int32
    assert dropped["labels"].tolist() == [3, 5, 4, 5]


def test_arrays_of_every_rank_are_dropped():
    """A conditioning may have several arrays, such as a text's tokens and its mask."""

    class Pair:
        def null(self, count):
            return {"a": jnp.full((count, 2), -1.0), "b": jnp.zeros((count, 2, 3), bool)}

    condition = {"a": jnp.arange(6.0).reshape(3, 2), "b": jnp.ones((3, 2, 3), bool)}
    found = drop(Pair(), condition, jnp.array([True, False, True]))
    assert found["a"].tolist() == [[-1, -1], [2, 3], [-1, -1]]
    assert found["b"].any(axis=(1, 2)).tolist() == [False, True, False]


def test_every_class_and_the_null_class_have_a_vector():
    embedding, condition = LABELS.embedding(8), {"labels": jnp.array([5, 2, 2])}
    params = embedding.init(jax.random.key(0), condition)
    (table,) = jax.tree.leaves(params)
    assert table.shape == (6, 8) and table.dtype == jnp.float32
    np.testing.assert_array_equal(embedding.apply(params, condition), table[jnp.array([5, 2, 2])])


def test_no_classes_are_refused():
    with pytest.raises(InputError, match="num_classes is 0"):
        ClassLabels(0)


def test_labels_are_lists_or_words():
    assert choose_labels("3,1,4", 7, 5, seed=0).tolist() == [3, 1, 4, 3, 1, 4, 3]
    assert choose_labels("2", 3, 5, seed=0).tolist() == [2, 2, 2]
    assert choose_labels("3,1,4", 2, 5, seed=0).tolist() == [3, 1]
    assert choose_labels("balanced", 7, 5, seed=0).tolist() == [0, 1, 2, 3, 4, 0, 1]
    drawn = choose_labels("random", 5000, 5, seed=3)
    assert drawn.dtype == choose_labels("3,1", 2, 5, seed=0).dtype == np.int32
    counts = np.bincount(drawn, minlength=5)
    assert len(counts) == 5 and abs(counts - 1000).max() < 4 * np.sqrt(5000 * 0.2 * 0.8)
    np.testing.assert_array_equal(choose_labels("random", 5000, 5, seed=3), drawn)
    np.testing.assert_array_equal(choose_labels("random", 10, 5, seed=3), drawn[:10])
    assert (choose_labels("random", 5000, 5, seed=4) != drawn).any()


@pytest.mark.parametrize(
    "text, part",
    [
        ("5", "label 5 is out of range, expected 0 to 4"),
        ("0,-1", "label -1 is out of range"),
        ("cat", "'cat'"),
        ("", "''"),
        ("1,,2", "'1,,2'"),
        ("1.5", "'1.5'"),
        ("Random", "'Random'"),
    ],
)
def test_bad_labels_are_refused(text, part):
    with pytest.raises(InputError) as refusal:
        choose_labels(text, 3, 5, seed=0)
    assert part in str(refusal.value)
