"""The file's `routes:`, and whether the models that they name are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from langport.settings.fields import nearest
from langport.settings.tree import RouteSettings


def read_routes(
    value: object, source: str, served: Sequence[str], problems: list[str], *, is_open: bool
) -> dict[str, RouteSettings]:
    """The file's `routes:`; a route may be written as the list of its deployments. Open: as for `read_aliases`."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(f"{source}: must hold a name and settings for each route, such as `chat: [chat-a, chat-b]`.")
        return {}
    routes: dict[str, RouteSettings] = {}
    for name, entry in ((str(name), entry) for name, entry in value.items()):
        fields = dict(entry) if isinstance(entry, dict) else {"deployments": entry}
        deployments = fields.get("deployments")
        if isinstance(deployments, list):
            fields["deployments"] = [{"model": each} if isinstance(each, str) else each for each in deployments]
        route = _struct(RouteSettings, fields, f"{source}.{name}", problems)
        if route is not None:
            routes[name] = route
        if name in served:
            problems.append(f"{source}.{name}: {name!r} is already the name of a served model.")
    for name, route in routes.items():
        problems.extend(_route_problems(name, route, f"{source}.{name}", served, routes, is_open=is_open))
    return routes


def _route_problems(
    name: str, route: RouteSettings, source: str, served: Sequence[str], routes: Iterable[str], *, is_open: bool
) -> Iterator[str]:
    """Names that are not served, or more than once. Open: a name that nobody has yet is taken on trust."""
    own = [deployment.model for deployment in route.deployments]
    others = [other for other in (*served, *routes) if other != name and other not in own]
    for where, names, known in (("deployments", own, served), ("fallbacks", route.fallbacks, others)):
        for number, target in enumerate(names):
            is_trusted = is_open and target not in (*served, *routes)
            if target not in known and not is_trusted:
                yield (
                    f"{source}.{where}[{number}]: {target!r} is none of {', '.join(known) or 'no names at all'}"
                    f"{nearest(target, known)}"
                )
            elif target in names[:number]:
                yield f"{source}.{where}[{number}]: {target!r} is there twice."


S = TypeVar("S", bound=msgspec.Struct)


def _struct(kind: type[S], value: object, source: str, problems: list[str]) -> S | None:
    """A struct of the file, whatever is wrong in it told together; None then."""
    if not isinstance(value, dict):
        problems.append(f"{source}: must hold `name: value` lines, not {value!r}.")
        return None
    num_problems = len(problems)
    fields = {str(key).replace("-", "_"): content for key, content in value.items()}
    hints = get_type_hints(kind, include_extras=True)
    known = list(hints)
    problems.extend(
        f"{source}: there is no setting {name!r}{nearest(name, known)}" for name in fields if name not in known
    )
    found = {
        name: _member(hints[name], content, f"{source}.{name}", problems)
        for name, content in fields.items()
        if name in known and content is not None
    }
    required = msgspec.structs.fields(kind)
    problems.extend(
        f"{source}: {field.name} is missing." for field in required if field.required and field.name not in found
    )
    return kind(**found) if len(problems) == num_problems else None


def _member(hint: Any, value: object, source: str, problems: list[str]) -> Any:
    """One value of a struct."""
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        return _struct(bare, value, source, problems)
    inner = get_args(bare)[0] if get_origin(bare) is tuple else None
    if isinstance(inner, type) and issubclass(inner, msgspec.Struct) and isinstance(value, list) and value:
        entries = enumerate(value)
        return tuple(_struct(inner, entry, f"{source}[{number}]", problems) for number, entry in entries)
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        problems.append(f"{source}: {value!r} is wrong: {error}.")
        return None
