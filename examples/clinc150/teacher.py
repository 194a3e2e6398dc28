"""Trains the teacher, a linear SVM over n-grams of words and characters, and serves it.

    python examples/clinc150/teacher.py data_full.json [--port 8150]

It learns from the data set's `train` and `oos_train` and sees no other part. Once it answers it prints one
line of JSON: its base URL, how many labels and features it has, and the seconds that it learnt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sklearn
from classifier_server import application, serve
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC

from stillhouse.models.serve import stop_with_stdin

NAME = "clinc150-linear-svm"
SEED = 17


def fitted(rows: Sequence[tuple[str, str]]) -> Any:
    """One-against-the-rest linear support vectors on TF-IDF; `rows` are (text, label)."""
    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    texts, labels = zip(*rows, strict=True)
    return make_pipeline(make_union(words, characters), LinearSVC(C=1.0, random_state=SEED)).fit(
        texts, labels
    )


def fingerprint(rows: Sequence[tuple[str, str]]) -> str:
    """Names the classifier by what it follows from: its rows, this file and the version of scikit-learn."""
    known = json.dumps([list(map(list, rows)), Path(__file__).read_text(), sklearn.__version__])
    return f"fp_{hashlib.sha256(known.encode()).hexdigest()[:12]}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the teacher and serve it.")
    parser.add_argument("data", type=Path, help="CLINC150's data_full.json")
    parser.add_argument("--port", type=int, default=8150, help="0 takes a free one")
    parser.add_argument("--until-stdin-ends", action="store_true", help="for a program that starts this one")
    options = parser.parse_args()
    if options.until_stdin_ends:
        threading.Thread(target=stop_with_stdin, daemon=True).start()
    data = json.loads(options.data.read_text())
    rows = [(text, label) for text, label in (*data["train"], *data["oos_train"])]
    started = time.monotonic()
    classifier = fitted(rows)
    labels, features = classifier[-1].coef_.shape
    facts = {"labels": labels, "features": features, "seconds": round(time.monotonic() - started, 2)}
    app = application(classifier, NAME, fingerprint(rows))
    serve(app, options.port, lambda url: print(json.dumps({"url": url} | facts), flush=True))


if __name__ == "__main__":
    main()
