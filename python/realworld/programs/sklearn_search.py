"""scikit-learn: a grid search, cross-validation and a forest, each with two jobs (joblib, loky, threads)."""

import numpy as np
from joblib import parallel_config
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score


def main():
    features, labels = make_classification(n_samples=400, n_features=12, random_state=1)
    search = GridSearchCV(LogisticRegression(max_iter=500), {"C": [0.01, 0.1, 1.0, 10.0]}, cv=3, n_jobs=2)
    search.fit(features, labels)
    print(search.best_params_, round(float(search.best_score_), 6))
    forest = RandomForestClassifier(n_estimators=30, random_state=2, n_jobs=2).fit(features, labels)
    print(round(float(forest.score(features, labels)), 6))
    for backend in ("loky", "multiprocessing", "threading"):
        with parallel_config(backend, n_jobs=2):
            scores = cross_val_score(LogisticRegression(max_iter=500), features, labels, cv=4)
        print(backend, np.round(scores, 6).tolist())


if __name__ == "__main__":
    main()
