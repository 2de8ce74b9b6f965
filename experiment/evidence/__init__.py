"""What several runs, fresh images and other rules say; pages read it, `make evidence` writes it."""
