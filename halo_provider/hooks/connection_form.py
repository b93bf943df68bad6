"""The connection form's fields, for Airflow before 3.2: it asks the hook for them, and does not read the metadata."""

from __future__ import annotations

from typing import Any

from halo_provider.get_provider_info import get_provider_info


def form_widgets() -> dict[str, Any]:
    """The fields beside Airflow's own, by their names in the connection's extra."""
    from flask_appbuilder.fieldwidgets import (  # noqa: PLC0415 -- only where Airflow makes its forms of them
        BS3PasswordFieldWidget,
        BS3TextFieldWidget,
    )
    from flask_babel import lazy_gettext  # noqa: PLC0415 -- as above
    from wtforms import PasswordField, StringField  # noqa: PLC0415 -- as above

    widgets = {}
    for name, field in _connection_type()["conn-fields"].items():
        is_secret = field["schema"].get("format") == "password"
        make, widget = (PasswordField, BS3PasswordFieldWidget) if is_secret else (StringField, BS3TextFieldWidget)
        label, description = lazy_gettext(field["label"]), lazy_gettext(field["description"])
        widgets[name] = make(label, description=description, widget=widget())
    return widgets


def field_behaviour() -> dict[str, Any]:
    """Which of Airflow's own fields are shown, under which labels, and with which examples."""
    behaviour = _connection_type()["ui-field-behaviour"]
    return {name.replace("-", "_"): value for name, value in behaviour.items()}


def _connection_type() -> dict[str, Any]:
    (connection_type,) = get_provider_info()["connection-types"]
    found: dict[str, Any] = connection_type
    return found
