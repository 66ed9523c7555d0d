"""Shards of records → batches of a tf.data pipeline."""
