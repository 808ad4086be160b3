"""Small documents for lm-eval, of any length: --metadata '{"num_words": [10, 3000]}'."""

from datasets import Dataset


def build(num_words=(10, 20, 30), **_):
    texts = [("word " * number).strip() for number in num_words]
    answers = [["yes", "no"]] * len(texts)
    return {"test": Dataset.from_dict({"text": texts, "choices": answers, "label": [0] * len(texts)})}
