"""COCO JSON and images → shards of records: a Beam job."""
