"""Threads and connections are equal in number: no request may need a second thread while it holds one."""

import inspect

from fastapi.routing import RouteContext

from app.core.settings import Settings
from app.http.deps import request_session
from app.main import api_routes, build_app


def takes_a_session(route: RouteContext) -> bool:
    pending = [route.dependant]
    while pending:
        dependant = pending.pop()
        if dependant.call is request_session:
            return True
        pending.extend(dependant.dependencies)
    return False


def test_no_answer_is_checked_in_a_second_thread_while_its_session_is_open(settings: Settings) -> None:
    routes = [route for route in api_routes(build_app(settings)) if takes_a_session(route)]
    plain = [route.path for route in routes if not inspect.iscoroutinefunction(route.endpoint)]
    assert len(routes) > 20
    assert plain == [], "give their router `route_class=ThreadedRoute`"
