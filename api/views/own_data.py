"""What we hold about a resident, for the resident: one file with all of it."""

import marshmallow as ma
from flask import Response
from flask.views import MethodView
from marshmallow import fields

from accounting.errors import NotFound
from api import tasks
from api.idempotency import idempotent
from api.openapi import Blueprint
from api.security import RESIDENT, caller, door
from integrations import exports

ZIP = "application/zip"

blueprint = Blueprint("own_data", __name__, description="What we hold about a resident")


class ExportAnswer(ma.Schema):
    job_id = fields.String(required=True)


def export_url(job_id: str) -> str:
    return f"/v1/me/exports/{job_id}"


@blueprint.route("/v1/me/export")
class Export(MethodView):
    @door(RESIDENT)
    @idempotent()
    @blueprint.response(202, ExportAnswer)
    def post(self) -> tuple[dict[str, str], int, dict[str, str]]:
        """Ask for everything you hold about me, as one file

        `GET /v1/jobs/{id}` says how far it is, and where the file can be had for a week. Asked
        again before it is finished, it is the same job.
        """
        job = exports.ask(caller().id)
        tasks.nudge(tasks.run_job, job.id)
        return {"job_id": job.id}, 202, {"Location": f"/v1/jobs/{job.id}"}


@blueprint.route("/v1/me/exports/<job_id>")
class ExportFile(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, description="A ZIP file with one JSON list a section")
    @blueprint.doc(
        responses={200: {"content": {ZIP: {"schema": {"type": "string", "format": "binary"}}}}}
    )
    def get(self, job_id: str) -> Response:
        """My file, until it expires"""
        found = exports.get(caller().id, job_id)
        if found is None:
            raise NotFound()
        answer = Response(exports.content(found), mimetype=ZIP)
        answer.content_length = found.size
        answer.headers["Content-Disposition"] = f'attachment; filename="tanhui-{job_id}.zip"'
        return answer
