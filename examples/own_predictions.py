"""Measure the probabilities of any classifier; here scikit-learn's logistic regression on its breast-cancer set.

python examples/own_predictions.py
"""

from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from crossent import report
from crossent.measure import evaluate

data = load_breast_cancer()
x_train, x_test, y_train, y_test = train_test_split(
    data.data, data.target, test_size=0.5, stratify=data.target, random_state=0
)
model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x_train, y_train)

record = evaluate(
    model.predict_proba(x_test),
    data.target_names[y_test],
    classes=list(data.target_names),  # in the order of the columns
    title="Logistic regression on breast cancer",
)
print(report.headline(record))
for name in ("cross_entropy", "skill", "miscalibration", "accuracy"):
    print(f"{name:>15}  {record[name]}")
record.write("breast_cancer.json")
report.write(record, "breast_cancer.html")
print("Written: breast_cancer.json, breast_cancer.html")
