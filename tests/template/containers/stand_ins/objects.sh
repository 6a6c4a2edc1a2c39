#!/bin/sh
# moto's S3 server at SeaweedFS's port; it keeps its objects in memory and checks no key.
set -eu
# SeaweedFS writes here when it starts.
mkdir -p /data/filerldb2
: >/data/filerldb2/CURRENT
exec python -c "from moto.server import main; main(['-H', '0.0.0.0', '-p', '8333'])"
