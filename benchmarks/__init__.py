"""Measure the cost of training: `python -m trainer bench`, and comparisons with plain peft, kohya and the playbook."""
