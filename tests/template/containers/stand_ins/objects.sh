#!/bin/sh
# moto's S3 server at SeaweedFS's port; it keeps its objects in memory and checks no key.
exec python -c "from moto.server import main; main(['-H', '0.0.0.0', '-p', '8333'])"
