FROM python:3.11-slim-bookworm
COPY site /site
COPY objects.sh /entrypoint.sh
# SeaweedFS' image has this folder too, and it belongs to root.
RUN mkdir -p /data/filerldb2
ENV PYTHONPATH=/site
ENTRYPOINT ["/entrypoint.sh"]
