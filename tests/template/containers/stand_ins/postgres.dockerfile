FROM postgres-packages
COPY postgres.sh /entrypoint.sh
RUN mkdir -p /usr/local/bin && ln -sf /usr/lib/postgresql/*/bin/* /usr/local/bin/ && \
    echo "app:x:10001:10001::/:/bin/sh" >>/etc/passwd
ENTRYPOINT ["/entrypoint.sh"]
