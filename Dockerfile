# One image for every process type; docker-compose.yml and the platforms choose the command.
FROM python:3.13-slim

WORKDIR /aegis
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .

# Kernels are compiled once, here, for any CPU of this architecture.
ENV AEGIS_NO_VENV=1 NUMBA_CPU_NAME=generic PYTHONUNBUFFERED=1
RUN ./aegis warm && useradd --create-home aegis && mkdir -p .aegis && chown -R aegis .aegis .numba-cache
USER aegis
STOPSIGNAL SIGTERM
ENTRYPOINT ["./aegis"]
CMD ["up"]
