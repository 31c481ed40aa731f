"""What training verbs share: the loop, its batches and state, teachers and their vectors."""
