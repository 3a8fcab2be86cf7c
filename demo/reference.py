"""The honest yardstick: words counted centrally, without any federation or privacy."""

from __future__ import annotations

from dataclasses import dataclass

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from demo.mails import Mail, Silo


@dataclass(frozen=True)
class BagOfWords:
    """What TF-IDF and logistic regression reach on the pooled mails."""

    accuracy: float
    auc: float


def _text(mail: Mail) -> str:
    return f"{mail['subject']}\n{mail['body']}"


def bag_of_words(silos: list[Silo], test: list[Mail]) -> BagOfWords:
    """Train on every silo's mails together (canaries included, as the other arms) and test."""
    training = [mail for silo in silos for mail in silo.training]
    model = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, min_df=2), LogisticRegression(C=10, max_iter=1000)
    )
    model.fit([_text(mail) for mail in training], [mail["label"] == "spam" for mail in training])
    truth = [mail["label"] == "spam" for mail in test]
    scores = model.predict_proba([_text(mail) for mail in test])[:, 1]
    hits = sum(bool(score > 0.5) == spam for score, spam in zip(scores, truth, strict=True))
    return BagOfWords(accuracy=hits / len(test), auc=float(roc_auc_score(truth, scores)))


def majority(test: list[Mail]) -> float:
    """Accuracy of always answering the commoner label."""
    spam = sum(mail["label"] == "spam" for mail in test)
    return max(spam, len(test) - spam) / len(test)
