"""What `embtool inspect` and `embtool doctor` report."""
