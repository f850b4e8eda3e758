"""The judge's accuracy on held-out renders, computed with the rules that score generated images."""

import torch
from torch import Tensor

from mini.training.images.pictures import Pictures
from mini.training.judge.data import targets_of
from mini.world.concepts import DESIGNS
from trainer.sampling.evaluation import score_base
from trainer.sampling.judge import Judge, judge_pictures
from trainer.sampling.prompt_sets import ScenePrompt


def accuracies(judge: Judge, held_out: Pictures) -> dict[str, float]:
    """Percentages: objects, colours and places as `score_base` counts them, and the F1 score of the kinds.

    For each concept: accuracy and area under the ROC curve, on all images and on those that show its kind of object,
    where most negatives are near misses.
    """
    labels, classes = held_out.labels, judge.classes
    verdicts = judge_pictures(judge, held_out.pixels, batch=64)
    targets = targets_of(labels, classes, torch.device("cpu"))
    base = score_base(verdicts, [ScenePrompt("", label.objects, label.place) for label in labels], classes)
    found = {"objects": base.objects, "colours": base.colours, "places": base.places}
    found["kinds_f1"] = 100 * f1(verdicts.kinds > 0.5, targets.kinds > 0.5)
    for index, concept in enumerate(classes.concepts):
        probabilities, truth = verdicts.concepts[:, index], targets.concepts[:, index] > 0.5
        alike = targets.kinds[:, classes.kinds.index(DESIGNS[concept].kind)] > 0.5
        found[f"{concept}_accuracy"] = 100 * right_share(probabilities, truth)
        found[f"{concept}_roc"] = 100 * roc_area(probabilities, truth)
        found[f"{concept}_accuracy_of_kind"] = 100 * right_share(probabilities[alike], truth[alike])
        found[f"{concept}_roc_of_kind"] = 100 * roc_area(probabilities[alike], truth[alike])
    return {name: round(value, 2) for name, value in found.items()}


def f1(found: Tensor, truth: Tensor) -> float:
    """The harmonic mean of precision and recall over all entries of two boolean tensors."""
    return (2 * (found & truth).sum() / (found.sum() + truth.sum()).clamp_min(1)).item()


def right_share(probabilities: Tensor, truth: Tensor) -> float:
    """The share of images that are classified correctly at a threshold of 0.5; 1 if there are none."""
    return ((probabilities > 0.5) == truth).double().mean().item() if len(truth) else 1.0


def roc_area(probabilities: Tensor, truth: Tensor) -> float:
    """The area under the ROC curve (Mann-Whitney U): the probability that a random positive scores above a random
    negative, ties counting half. 1 if there are no positives or no negatives."""
    positive, negative = probabilities[truth], probabilities[~truth].sort().values
    if not len(positive) or not len(negative):
        return 1.0
    below = torch.searchsorted(negative, positive, right=False) + torch.searchsorted(negative, positive, right=True)
    return (below.double().mean() / (2 * len(negative))).item()
