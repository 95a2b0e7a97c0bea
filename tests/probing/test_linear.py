"""The linear probes against scikit-learn and PyTorch, and on features whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from golden import relative_error
from sklearn.linear_model import LogisticRegression

from sra_jax.core.errors import InputError
from sra_jax.core.random import stream_key
from sra_jax.probing.linear import (
    PROTOCOLS,
    PaperProtocol,
    accuracy,
    choose_protocol,
    spread,
    standardise,
)

CLASSES = 10
QUICK = PROTOCOLS["quick"]


def on_progress(share):
    assert 0 < share <= 1


def scores(protocol, train, labels, test, test_labels, devices=1, classes=CLASSES):
    """Top-1 and top-5 of sets of features, each [N, D]."""
    devices = jax.devices()[:devices]
    x, y = standardise(
        *(spread(s.__getitem__, (len(s), *s[0].shape), devices) for s in (train, test))
    )
    linear = protocol.fit(x, jnp.asarray(labels), classes, 0, on_progress)
    found = accuracy(linear, y, jnp.asarray(test_labels))
    return [np.asarray(share)[: len(train)] for share in found]


def blobs(count, noise, seed=0, width=16):
    """Classes around random centres: features [count, width] and labels [count]."""
    centres = np.random.default_rng(9).normal(size=(CLASSES, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    features = 3 + 2 * centres[labels] + noise * rng.normal(size=(count, width))
    return features.astype(np.float32), labels


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_one_hot_features_are_read_without_a_fault(protocol):
    labels = np.arange(200) % CLASSES
    features = np.eye(CLASSES, dtype=np.float32)[labels]
    top1, top5 = scores(protocol, [features], labels, [features[:37]], labels[:37])
    assert (top1[0], top5[0]) == (1, 1)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_shuffled_labels_leave_it_to_chance(protocol):
    features, labels = blobs(3000, noise=1)
    shuffled = np.random.default_rng(1).permutation(labels)
    found = scores(protocol, [features[:2000]], shuffled[:2000], [features[2000:]], shuffled[2000:])
    for share, chance in zip(found, (0.1, 0.5), strict=True):
        assert abs(share[0] - chance) < 4 * np.sqrt(chance * (1 - chance) / 1000)
    ordered = scores(protocol, [features[:2000]], labels[:2000], [features[2000:]], labels[2000:])
    assert ordered[0][0] > 0.8


@pytest.mark.parametrize("noise", [1.0, 4.0])
def test_both_protocols_agree_with_scikit_learn(noise):
    features, labels = blobs(6000, noise)
    train, test = slice(0, 4000), slice(4000, None)
    mean, scale = features[train].mean(0), features[train].std(0)
    model = LogisticRegression(max_iter=2000).fit((features[train] - mean) / scale, labels[train])
    expected = model.score((features[test] - mean) / scale, labels[test])
    quick, _ = scores(QUICK, [features[train]], labels[train], [features[test]], labels[test])
    assert abs(quick[0] - expected) <= 0.001  # two images
    paper = PaperProtocol(batch_size=256, learning_rate=1e-2)  # steps enough for few features
    paper, _ = scores(paper, [features[train]], labels[train], [features[test]], labels[test])
    assert abs(paper[0] - expected) <= 0.01


def test_the_quick_protocol_finds_the_optimum_of_scikit_learn():
    features, labels = blobs(500, noise=2)
    x, _ = standardise(jnp.asarray(features)[None], jnp.asarray(features)[None])
    linear = QUICK.fit(x, jnp.asarray(labels), CLASSES, 0, on_progress)
    model = LogisticRegression(tol=1e-8, max_iter=5000).fit(np.asarray(x[0]), labels)
    assert relative_error(linear.kernel[0], model.coef_.T) < 0.01
    shares = jax.nn.softmax(x[0] @ linear.kernel[0] + linear.bias[0])
    np.testing.assert_allclose(shares, model.predict_proba(np.asarray(x[0])), atol=0.01)


def test_the_papers_protocol_is_adam_along_a_cosine():
    """Step for step as PyTorch does it, on the same batches, of which the rest is dropped."""
    features, labels = blobs(70, noise=2, width=8)
    x, _ = standardise(jnp.asarray(features)[None], jnp.asarray(features)[None])
    protocol = PaperProtocol(epochs=3, batch_size=16, learning_rate=0.05)
    linear = protocol.fit(x, jnp.asarray(labels), CLASSES, 5, on_progress)

    layer = torch.nn.Linear(8, CLASSES)
    torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
    normalised = torch.nn.BatchNorm1d(8, affine=False)(torch.tensor(features))
    for epoch in range(3):
        order = np.array(jax.random.permutation(stream_key(5, "probe order", epoch), 70))
        for rows in order[:64].reshape(4, 16):
            optimizer.zero_grad()
            logits = layer(normalised[rows])
            torch.nn.functional.cross_entropy(logits, torch.tensor(labels[rows])).backward()
            optimizer.step(), schedule.step()
    assert relative_error(linear.kernel[0], layer.weight.detach().numpy().T) < 1e-5
    assert relative_error(linear.bias[0], layer.bias.detach().numpy()) < 1e-5


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_sets_are_fitted_side_by_side_on_any_devices(protocol):
    """Five sets on four devices, each as if it were alone."""
    sets = [blobs(300, noise, seed=7)[0] for noise in (1, 2, 3, 4, 5)]
    labels = blobs(300, 1, seed=7)[1]
    train, test = [s[:200] for s in sets], [s[200:] for s in sets]
    together = scores(protocol, train, labels[:200], test, labels[200:], devices=4)
    assert len(together[0]) == 5 and together[0][0] > together[0][4]
    for i in (0, 4):
        alone = scores(protocol, train[i : i + 1], labels[:200], test[i : i + 1], labels[200:])
        np.testing.assert_allclose([t[i] for t in together], np.ravel(alone), atol=0.011)


def test_the_norm_has_the_training_sets_statistics():
    train, test = np.random.default_rng(0).normal(5, 3, (2, 2, 50, 4)).astype(np.float32)
    train[0, :, 2] = 7  # says nothing, and must not be blown up
    norm = torch.nn.BatchNorm1d(4, affine=False, momentum=1.0)
    x, y = standardise(train, test)
    for i in range(2):
        expected = norm.train()(torch.tensor(train[i])).numpy()
        np.testing.assert_allclose(x[i], expected, atol=1e-4)
    mean, scale = train[1].mean(0), np.sqrt(train[1].var(0) + 1e-5)
    np.testing.assert_allclose(y[1], (test[1] - mean) / scale, atol=1e-4)
    assert not np.asarray(x[0, :, 2]).any()


def test_of_fewer_than_five_classes_the_class_is_always_among_the_first_five():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(60, 4)).astype(np.float32), rng.integers(3, size=60)
    top1, top5 = scores(QUICK, [features], labels, [features], labels, classes=3)
    assert top1[0] < 1 and top5[0] == 1


def test_the_size_of_the_set_chooses_the_protocol():
    assert choose_protocol("auto", 1_281_167) == choose_protocol("auto", 40_000) == "paper"
    assert choose_protocol("auto", 1438) == "quick"
    assert choose_protocol("paper", 10) == "paper"
    with pytest.raises(InputError, match=r"'papr'.*did you mean 'paper'"):
        choose_protocol("papr", 10)
