"""What training costs on this machine: files made on the spot, real runs measured, two measurements compared."""
