"""Quality of a model on a folder of cases: word error rate, exact answers, exact tool calls."""
