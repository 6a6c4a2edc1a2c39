FROM python:3.11-slim-bookworm
COPY site /site
COPY objects.sh /entrypoint.sh
ENV PYTHONPATH=/site
ENTRYPOINT ["/entrypoint.sh"]
