FROM python:3.11-slim-bookworm
ARG PROGRAM
COPY root /
RUN ln -s /usr/bin/${PROGRAM} /entrypoint
ENTRYPOINT ["/entrypoint"]
