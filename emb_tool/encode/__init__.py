"""`embtool encode`: texts to a file of vectors, row by row. The verb has no methods."""

METHODS = ()
JOB = ("emb_tool.encode.job", "EncodeJob")
RUNNER = ("emb_tool.encode.runner", "EncodeRunner")
