"""What the outside must provide. Arrow, bytes and frozen plans cross these ports, nothing else."""
