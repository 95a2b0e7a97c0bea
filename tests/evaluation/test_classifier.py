"""The small classifier learns, and metrics on its features tell sets apart."""

import json

import jax
import numpy as np
import pytest
from tiny import hurry_classifier

from sra_jax.core.errors import InputError
from sra_jax.data.embedded import load_digits
from sra_jax.evaluation.classifier import ConvNet, train_classifier
from sra_jax.jobs.evaluate import EvaluateRequest, evaluate


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits()
    order = np.random.default_rng(0).permutation(len(images))
    return images[order], labels[order]


def test_it_knows_digits_that_it_has_not_seen(digits):
    images, labels = digits
    classifier = train_classifier(images[:1400], labels[:1400], 10)
    assert np.mean(classifier.predict(images[1400:]) == labels[1400:]) > 0.97


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (12, 3), (32, 3)])
def test_its_features_are_of_one_width(side, channels):
    images = np.random.default_rng(0).integers(0, 256, (3, side, side, channels), np.uint8)
    network = ConvNet(5)
    features = network.apply(network.init(jax.random.key(0), images), images)
    assert features.pool.shape == (3, 64) and features.logits.shape == (3, 5)
    assert features.spatial.shape[1:] in ((4, 4, 7), (6, 6, 7))


@pytest.mark.parametrize("shape", [(8, 6), (2, 2)])
def test_images_that_it_cannot_learn_are_refused(shape):
    with pytest.raises(InputError, match=f"images of {shape[0]}x{shape[1]}, expected squares"):
        train_classifier(np.zeros((4, *shape, 1), np.uint8), np.zeros(4, int), 2)


def test_what_it_measures_ranks_sets(capsys, digits, monkeypatch, tmp_path):
    """Real digits are near the real ones, some classes alone and noise far."""
    hurry_classifier(monkeypatch, 200)
    images, labels = digits
    noise = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    few = labels < 3
    distances = []
    for name, chosen in (("real", images[:900]), ("few", images[few]), ("noise", noise[:900])):
        np.savez(tmp_path / f"{name}.npz", arr_0=chosen)
        evaluate(
            EvaluateRequest(
                samples=str(tmp_path / f"{name}.npz"),
                reference="embedded:digits",
                features="classifier",
                metrics="fid,is,pr",
            )
        )
        numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert all(key.startswith("classifier_") for key in list(numbers)[3:])
        distances.append(numbers["classifier_fid"])
        if name == "real":
            assert numbers["classifier_precision"] == 1
            assert 5 < numbers["classifier_inception_score"] <= 10
    assert 4 * distances[0] < min(distances[1:])
