FROM python:3.13.9-slim-trixie AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY mail_templates mail_templates
RUN python -m venv /opt/approvals && /opt/approvals/bin/pip install --no-cache-dir .

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
