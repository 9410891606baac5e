"""A file of questions, answered by a pool of workers on Ray Data, exactly once each.

- `job`: what is asked of what, and the folder it goes to; another run's folder is refused.
- `shards`: the input in numbered pieces of N rows; each piece's answers are a file of their own, whole or absent.
- `engines`: who answers, transformers or vLLM.
- `worker`: an actor of the pool: one model, one shard at a time.
- `driver`: hands the unfinished shards to the pool, and shows how far it is.

Ray's own `read_parquet` and `write_parquet` are not used. The one says of no row which one it is, and cuts by bytes; the other
names files anew in every run, so that a task that Ray tries again can leave its rows twice. Here a file's name says which rows
it holds: whoever writes it, and however often, the rows are there once.
"""
