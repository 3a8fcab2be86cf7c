"""Swagger UI, served by ourselves under a policy that allows no inline script, style or foreign host.

Who signs in here, by `POST /v1/sessions`, has authorized the page with it; a refresh renews that. Credentials
are forgotten with the page (`persistAuthorization` is off).
"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from swagger_ui_bundle import swagger_ui_path

from app.http.deps import public

router = APIRouter(include_in_schema=False, dependencies=[public("documentation is public")])

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
_DAY = "public, max-age=86400"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>DP-Federated LoRA Lab: API</title>
<link rel="icon" href="docs/assets/favicon-32x32.png">
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/initializer.js"></script>
</body>
</html>
"""
_INITIALIZER = """"use strict";
const SIGN_INS = ["/v1/sessions", "/v1/sessions/refresh"];

function authorize(response) {
  const path = new URL(response.url).pathname;
  const token = response.ok && response.obj && response.obj.access_token;
  if (token && SIGN_INS.some((one) => path.endsWith(one))) {
    window.ui.preauthorizeApiKey("HTTPBearer", token);
  }
  return response;
}

window.addEventListener("load", () => {
  window.ui = SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    persistAuthorization: false,
    displayRequestDuration: true,
    docExpansion: "none",
    filter: true,
    validatorUrl: null,
    responseInterceptor: authorize,
    oauth2RedirectUrl: new URL("docs/oauth2-redirect.html", window.location.href).href,
    presets: [SwaggerUIBundle.presets.apis],
  });
  window.ui.initOAuth({ clientId: "dpfl", usePkceWithAuthorizationCodeGrant: true });
});
"""
_REDIRECT_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Signed in</title></head>
<body><script src="oauth2-redirect.js"></script></body>
</html>
"""
# Swagger UI signs in in a window of its own, which must be able to find this page again.
_OPENS_WINDOWS = {"Cross-Origin-Opener-Policy": "same-origin-allow-popups"}
_IS_OPENED = {"Cross-Origin-Opener-Policy": "unsafe-none"}


@router.get("/docs")
def get_docs() -> HTMLResponse:
    """The page."""
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": POLICY} | _OPENS_WINDOWS)


@router.get("/docs/oauth2-redirect.html")
def get_oauth2_redirect() -> HTMLResponse:
    """Where a sign-in through an issuer ends: hands the code to the page that opened this one."""
    return HTMLResponse(_REDIRECT_PAGE, headers={"Content-Security-Policy": POLICY} | _IS_OPENED)


@router.get("/docs/oauth2-redirect.js")
def get_oauth2_redirect_script() -> FileResponse:
    """Swagger UI's own script for that page."""
    return FileResponse(swagger_ui_path / "oauth2-redirect.js", headers={"Cache-Control": _DAY})


@router.get("/docs/initializer.js")
def get_initializer() -> Response:
    """What starts Swagger UI: a file of its own, since the policy allows no inline script."""
    return Response(_INITIALIZER, media_type="text/javascript")


@router.get("/docs/assets/{name}")
def get_asset(
    name: Literal["swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"],
) -> FileResponse:
    """One of Swagger UI's own files, by a fixed list of names."""
    return FileResponse(swagger_ui_path / name, headers={"Cache-Control": _DAY})


@router.get("/openapi.json")
def get_openapi(request: Request) -> JSONResponse:
    """The API's description."""
    return JSONResponse(request.app.openapi(), headers={"Cache-Control": "no-cache"})
