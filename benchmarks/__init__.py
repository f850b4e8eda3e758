"""What training costs: `python -m trainer bench`, and the project beside plain peft, kohya and the playbook."""
