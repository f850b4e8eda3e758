"""What every room uses: problems, files, randomness, the process, devices. Imports no other room."""
