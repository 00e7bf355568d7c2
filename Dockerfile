# One image for the API, the workers and the migration step; docker-compose.yml says which is which.
FROM python:3.11-slim
RUN useradd --create-home tunix
WORKDIR /opt/tunix_rt
COPY . .
RUN pip install --no-cache-dir ".[serve,postgres]"
# A worker does not see a TPU or GPU from here unless JAX for it is added: pip install "jax[cuda12]"
WORKDIR /srv/tunix_rt
RUN mkdir -p data/datasets data/imports outputs && cp -r /opt/tunix_rt/data/datasets/* data/datasets/ \
    && chown -R tunix /srv/tunix_rt
USER tunix
ENV TUNIX_RT_ROOT=/srv/tunix_rt
ENTRYPOINT ["tunix-rt"]
