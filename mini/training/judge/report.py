"""How often the judge is right on held-out renders, by the very rules that score a model's pictures."""

import torch
from torch import Tensor

from mini.training.images.pictures import Pictures
from mini.training.judge.data import CLASSES, targets_of
from mini.world.concepts import DESIGNS
from trainer.sampling.evaluation import ScenePrompt, score_base
from trainer.sampling.judge import Judge, judge_pictures


def accuracies(judge: Judge, held_out: Pictures) -> dict[str, float]:
    """Percentages: objects, colours and places as `score_base` counts them, the kinds' F1, and for each concept its
    accuracy, its area under the ROC curve, and both on pictures that show its kind of object alone: there the
    negatives are mostly near misses."""
    labels = held_out.labels
    verdicts = judge_pictures(judge, held_out.pixels, batch=64)
    targets = targets_of(labels, torch.device("cpu"))
    base = score_base(verdicts, [ScenePrompt("", label.objects, label.place) for label in labels], CLASSES)
    found = {"objects": base.objects, "colours": base.colours, "places": base.places}
    found["kinds_f1"] = 100 * f1(verdicts.kinds > 0.5, targets.kinds > 0.5)
    for index, concept in enumerate(CLASSES.concepts):
        probabilities, truth = verdicts.concepts[:, index], targets.concepts[:, index] > 0.5
        alike = targets.kinds[:, CLASSES.kinds.index(DESIGNS[concept].kind)] > 0.5
        found[f"{concept}_accuracy"] = 100 * right_share(probabilities, truth)
        found[f"{concept}_roc"] = 100 * roc_area(probabilities, truth)
        found[f"{concept}_accuracy_of_kind"] = 100 * right_share(probabilities[alike], truth[alike])
        found[f"{concept}_roc_of_kind"] = 100 * roc_area(probabilities[alike], truth[alike])
    return {name: round(value, 2) for name, value in found.items()}


def f1(found: Tensor, truth: Tensor) -> float:
    """The harmonic mean of precision and recall over all entries of two boolean tensors."""
    return (2 * (found & truth).sum() / (found.sum() + truth.sum()).clamp_min(1)).item()


def right_share(probabilities: Tensor, truth: Tensor) -> float:
    """The share of pictures on whose side of a half the probability lies; 1 without pictures."""
    return ((probabilities > 0.5) == truth).double().mean().item() if len(truth) else 1.0


def roc_area(probabilities: Tensor, truth: Tensor) -> float:
    """The probability that a random positive scores above a random negative, ties counting half (Mann and Whitney);
    1 where either is lacking."""
    positive, negative = probabilities[truth], probabilities[~truth].sort().values
    if not len(positive) or not len(negative):
        return 1.0
    below = torch.searchsorted(negative, positive, right=False) + torch.searchsorted(negative, positive, right=True)
    return (below.double().mean() / (2 * len(negative))).item()
