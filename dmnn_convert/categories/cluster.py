"""Categories for any data set: clusters of the rows of a trained classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..dryrun import classes_told_by, classifier_of
from ..errors import ArgumentError
from .mapping import Categories, check_class_names

_MEMBERS = 3  # of a cluster, in its name


def clusters(
    classifier: nn.Module | Tensor, K: int, class_names: Sequence[str] | None = None
) -> Categories:
    """Return K clusters of the classes whose rows in a trained classifier point the same way.

    Rows are scaled to unit length and joined by Ward's agglomerative clustering. Clusters are
    numbered in the order of their first class. Needs scikit-learn.

    Args:
        classifier: a linear layer, a 1x1 convolution, or the weight of one, (classes, features).
        K: number of clusters, from 2 to the number of classes.
        class_names: name of each class, to name the clusters by.

    Raises:
        ArgumentError: if the classifier is of another kind, its weights are not finite, K is out
            of range, the names do not fit, or scikit-learn is missing.

    Example:
        >>> clusters(source.fc, K=3).count
        3
    """
    weight = _weight(classifier)
    _check_count(K, len(weight))
    check_class_names(class_names, len(weight), "clusters")
    if weight.is_meta or not bool(weight.isfinite().all()):
        raise ArgumentError("clusters: the classifier has no finite weights; give a trained one.")
    rows = weight.detach().to("cpu", torch.float64)
    found = _agglomerate(nn.functional.normalize(rows), K)
    number = {cluster: i for i, cluster in enumerate(dict.fromkeys(found))}
    labels = [number[cluster] for cluster in found]
    return Categories(tuple(labels), tuple(_name(i, labels, class_names) for i in range(K)))


def _weight(classifier: nn.Module | Tensor) -> Tensor:
    if isinstance(classifier, Tensor) and classifier.ndim == 2:
        return classifier
    weight = getattr(classifier, "weight", None)
    if (
        isinstance(weight, Tensor)
        and isinstance(classifier, nn.Module)
        and classes_told_by(classifier)
    ):
        return weight.flatten(1)
    shape = f" of shape {tuple(classifier.shape)}" if isinstance(classifier, Tensor) else ""
    raise ArgumentError(
        f"clusters: got a {type(classifier).__name__}{shape} for a classifier; give an nn.Linear, "
        "a 1x1 convolution, or a weight of shape (classes, features)."
    )


def _check_count(K: object, num_classes: int) -> None:
    if isinstance(K, bool) or not isinstance(K, int) or not 2 <= K <= num_classes:
        raise ArgumentError(
            f"clusters: got K={K!r} for {num_classes} classes; the number of clusters is an int "
            "from 2 to the number of classes."
        )


def _agglomerate(rows: Tensor, K: int) -> list[int]:
    try:
        from sklearn.cluster import AgglomerativeClustering
    except ImportError as error:
        raise ArgumentError(
            "clusters: needs scikit-learn, which is not installed: "
            'pip install "dmnn-convert[finetune]".'
        ) from error
    found: list[int] = AgglomerativeClustering(n_clusters=K).fit_predict(rows.numpy()).tolist()
    return found


def _name(cluster: int, labels: Sequence[int], class_names: Sequence[str] | None) -> str:
    if class_names is None:
        return f"cluster {cluster}"
    members = [name for name, label in zip(class_names, labels, strict=True) if label == cluster]
    shown = [*members[:_MEMBERS], *(["…"] if len(members) > _MEMBERS else [])]
    return f"cluster {cluster} ({', '.join(shown)})"


def trained_classifier(model: nn.Module, num_classes: int) -> nn.Module:
    """Return the linear layer or 1x1 convolution that tells a model's classes apart.

    Raises:
        ArgumentError: if there is none with so many outputs.
    """
    found = classifier_of(model, num_classes)
    if found is not None:
        return found.layer
    last = classifier_of(model)
    has = (
        "it has no such layer at all" if last is None else f"its last such layer has {last.classes}"
    )
    raise ArgumentError(
        f"clusters: {type(model).__name__} has no linear layer or 1x1 convolution with "
        f"{num_classes} outputs; {has}. Give the model that was trained on these classes."
    )
