FROM python:3.13.9-slim-trixie AS build
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY mail_templates mail_templates
# The exact versions of pyproject.toml, whose constraints pip does not read.
ENV UV_PROJECT_ENVIRONMENT=/opt/approvals UV_PYTHON_DOWNLOADS=never UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
RUN uv sync --no-cache --no-dev --no-editable --extra postgres

FROM python:3.13.9-slim-trixie
RUN groupadd --gid 10001 approvals \
    && useradd --uid 10001 --gid approvals --no-create-home --shell /usr/sbin/nologin approvals \
    && install --directory --owner approvals --group approvals --mode 0700 /data
COPY --from=build /opt/approvals /opt/approvals
ENV PATH=/opt/approvals/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
# A new named volume takes its owner from this folder.
WORKDIR /data
EXPOSE 5001 2525
ENTRYPOINT ["approvals"]
CMD ["serve"]
