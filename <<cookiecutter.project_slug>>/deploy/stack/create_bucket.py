"""Creates a bucket unless it exists. Arguments: the address of the object store, and the name."""

import sys

import boto3
from botocore.config import Config

address, name = sys.argv[1:]
# The store starts at the same time: each attempt waits longer than the one before.
store = boto3.client("s3", endpoint_url=address, config=Config(retries={"max_attempts": 12, "mode": "standard"}))
if name not in {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}:
    store.create_bucket(Bucket=name)
