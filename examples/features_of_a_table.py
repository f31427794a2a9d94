"""Which columns of a table predict a target? A network chooses five of thirty."""

from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

import dgating as dg

table, benign = load_breast_cancer(return_X_y=True, as_frame=True)
train, test, y_train, y_test = train_test_split(table, benign, random_state=0)

model = dg.DGatedClassifier((32,), n_groups=5, random_state=0).fit(train, y_train)
print("columns: ", ", ".join(model.get_feature_names_out()))
print("accuracy:", round(model.score(test, y_test), 3))
print("network: ", model.model_[0])  # it reads the five columns alone

linear = dg.DGatedLinearClassifierCV(cv=5).fit(train, y_train)  # λ by the one-standard-error rule
print("linear:  ", linear.selected_groups_, round(linear.score(test, y_test), 3))
