"""What training costs: `python -m trainer bench`, and the project next to plain peft, kohya and the playbook."""
