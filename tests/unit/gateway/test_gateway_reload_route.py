from __future__ import annotations

from gateway_fakes import make_client

from langport.errors import ConfigError

ADMIN = {"authorization": "Bearer sk-admin"}


async def test_the_admin_key_reads_the_settings_again():
    client = make_client(admin_key="sk-admin")

    async def reload():
        return ("routes", "redirect"), ("port",)

    client.app.on_reload = reload
    found = await client.post("/admin/reload", {}, headers=ADMIN)
    assert found.json == {"object": "settings.reload", "changed": ["routes", "redirect"], "need_restart": ["port"]}
    assert (await client.post("/admin/reload", {})).status in (401, 403)


async def test_problems_are_told_together():
    client = make_client(admin_key="sk-admin")

    async def reload():
        raise ConfigError("One is wrong.", "Two is wrong.")

    client.app.on_reload = reload
    found = await client.post("/admin/reload", {}, headers=ADMIN)
    assert found.status == 400
    assert "One is wrong. Two is wrong." in found.error["message"]
