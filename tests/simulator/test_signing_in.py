"""Signing in: discovery, registration, consent, PKCE, tokens that rotate, and their end."""

import concurrent.futures

import httpx
import pytest

from halo_provider.simulator import Fault, Reading, Simulator
from tests.simulator.programs import REDIRECT, Program, answered


def test_a_401_leads_to_every_address(program: Program) -> None:
    """From the challenge to the resource's description, from there to the authorization server's."""
    refused = program.post("ping")
    place = refused.headers["WWW-Authenticate"].partition('resource_metadata="')[2].partition('"')[0]
    resource = program.web.get(place).json()
    server = program.web.get(f"{resource['authorization_servers'][0]}/.well-known/oauth-authorization-server").json()

    assert refused.status_code == 401
    assert resource["resource"] == f"{program.url}/api/mcp"
    assert server["issuer"] == program.url
    assert server["code_challenge_methods_supported"] == ["S256"]
    assert server["token_endpoint_auth_methods_supported"] == ["none", "client_secret_basic", "client_secret_post"]
    assert {name for name in server if name.endswith("_endpoint")} == {
        "authorization_endpoint",
        "token_endpoint",
        "registration_endpoint",
        "revocation_endpoint",
    }


def test_bare_get_describes_the_server(program: Program) -> None:
    """Without a token, it has all addresses."""
    described = program.web.get("/api/mcp").json()

    assert described["protocolVersion"] == "2025-03-26"
    assert described["endpoint"] == f"{program.url}/api/mcp"
    assert described["token_endpoint"] == f"{program.url}/oauth/token"
    assert described["resource_metadata"].endswith("/.well-known/oauth-protected-resource/api/mcp")


@pytest.mark.parametrize("auth_method", ["none", "client_secret_basic", "client_secret_post"])
def test_each_way_of_authentication_signs_in(simulator: Simulator, program: Program, auth_method: str) -> None:
    """A program that registered for it gets tokens, refreshes them and calls a tool."""
    program.auth_method = auth_method
    program.sign_in()
    first = program.tokens

    assert program.refresh().status_code == 200
    assert program.rpc("ping") == {}
    assert first["access_token"].startswith("halo_at_")
    assert (first["expires_in"], first["scope"], first["token_type"]) == (3600, "data:read", "Bearer")
    assert ("client_secret" in program.client) == (auth_method != "none")
    assert [(each.revoked, len(each.refreshes)) for each in simulator.sign_ins] == [(False, 1)]


@pytest.mark.parametrize("used", ["none", "client_secret_basic", "client_secret_post"])
def test_another_way_than_the_registered_one_is_refused(program: Program, used: str) -> None:
    """A client authenticates as it said it would, and a wrong secret does not help."""
    program.auth_method = "client_secret_post" if used != "client_secret_post" else "client_secret_basic"
    program.register()
    program.auth_method = used

    refused = program.refresh("halo_rt_example")

    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")
    assert ("WWW-Authenticate" in refused.headers) == (used == "client_secret_basic")


def test_wrong_secret_is_refused(program: Program) -> None:
    """Also where the way is right."""
    program.auth_method = "client_secret_basic"
    program.sign_in()
    program.client["client_secret"] = "ha_secret_example_wrong"

    assert program.refresh().json()["error"] == "invalid_client"


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"redirect_uris": ["http://example.com/callback"]}, "invalid_redirect_uri"),
        ({"redirect_uris": ["http://127.0.0.1:1/#part"]}, "invalid_redirect_uri"),
        ({"redirect_uris": []}, "invalid_redirect_uri"),
        ({"redirect_uris": None}, "invalid_redirect_uri"),
        ({"token_endpoint_auth_method": "private_key_jwt"}, "invalid_client_metadata"),
        ({"grant_types": ["client_credentials"]}, "invalid_client_metadata"),
        ({"response_types": ["token"]}, "invalid_client_metadata"),
        ({"scope": "data:read data:write"}, "invalid_client_metadata"),
    ],
)
def test_registration_refuses_what_halo_does_not_have(program: Program, changed: dict[str, object], error: str) -> None:
    """Each refusal has the error that RFC 7591 gives it."""
    refused = program.register(**changed)

    assert (refused.status_code, refused.json()["error"]) == (400, error)


def test_ten_registrations_an_hour(simulator: Simulator, program: Program) -> None:
    """The eleventh is told how long to wait, and succeeds then."""
    statuses = [program.register().status_code for _ in range(10)]
    refused = program.register()
    simulator.advance(int(refused.headers["Retry-After"]))

    assert statuses == [201] * 10
    assert refused.status_code == 429
    assert 3_590 <= int(refused.headers["Retry-After"]) <= 3_600
    assert program.register().status_code == 201


def test_page_asks_a_person(program: Program) -> None:
    """It names the program, escaped, and the scope; a decision counts once."""
    program.register(client_name="<b>Nightly</b>")
    page = program.ask()
    sent_back = program.decide(page)

    assert page.headers["Content-Type"].startswith("text/html")
    assert "&lt;b&gt;Nightly&lt;/b&gt;" in page.text
    assert "data:read" in page.text
    found = answered(sent_back)
    assert (found["state"], found["iss"]) == ("state-1", program.url)
    assert program.decide(page).status_code == 400


def test_person_may_deny(program: Program) -> None:
    """The program is told."""
    program.register()

    found = answered(program.decide(program.ask(), decision="deny"))

    assert (found["error"], found["state"]) == ("access_denied", "state-1")


@pytest.mark.parametrize(("consent", "expected"), [("approved", "code"), ("denied", "error")])
def test_consent_can_come_without_a_page(simulator: Simulator, program: Program, consent: str, expected: str) -> None:
    """For programs that run without a person."""
    simulator.reading = Reading.model_validate({"consent": consent})
    program.register()

    assert expected in answered(program.ask())


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"scope": "data:write"}, "invalid_scope"),
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"resource": "https://example.com/api/mcp"}, "invalid_target"),
    ],
)
def test_wrong_request_is_sent_back(program: Program, changed: dict[str, str | None], error: str) -> None:
    """With the error, and no page."""
    program.register()

    assert answered(program.ask(**changed))["error"] == error


@pytest.mark.parametrize("changed", [{"client_id": "client_unknown"}, {"redirect_uri": "http://127.0.0.1:1/callback"}])
def test_nobody_is_sent_to_an_unregistered_address(program: Program, changed: dict[str, str]) -> None:
    """Neither for an unknown client nor to an address that was not registered."""
    program.register()
    refused = program.ask(**changed)

    assert (refused.status_code, "Location" in refused.headers) == (400, False)


@pytest.mark.parametrize(
    "changed",
    [
        {"code_verifier": "x" * 50},
        {"code_verifier": None},
        {"redirect_uri": "http://127.0.0.1:1/callback"},
        {"redirect_uri": None},
        {"code": "unknown"},
    ],
)
def test_code_is_good_with_what_belongs_to_it_only(program: Program, changed: dict[str, str | None]) -> None:
    """The verifier of the challenge, and the same redirect address."""
    program.register()
    code = answered(program.decide(program.ask()))["code"]

    assert program.exchange(code, **changed).json()["error"] == "invalid_grant"


def test_code_used_twice_revokes_what_it_gave(program: Program) -> None:
    """As OAuth 2.1 has it."""
    program.register()
    code = answered(program.decide(program.ask()))["code"]
    program.exchange(code)

    assert program.exchange(code).json()["error"] == "invalid_grant"
    assert program.post("ping").status_code == 401
    assert program.refresh().json()["error"] == "invalid_grant"


def test_code_expires(simulator: Simulator, program: Program) -> None:
    """After ten minutes."""
    program.register()
    code = answered(program.decide(program.ask()))["code"]
    simulator.advance(600)

    assert program.exchange(code).json()["error"] == "invalid_grant"


def test_access_token_lasts_an_hour_of_a_clock_that_can_be_moved(simulator: Simulator, program: Program) -> None:
    """Then it is 401 until a refresh."""
    program.sign_in()
    simulator.advance(3_500)
    before = program.post("ping").status_code
    simulator.advance(100)
    after = program.post("ping")
    program.refresh()

    assert (before, after.status_code) == (200, 401)
    assert 'error="invalid_token"' in after.headers["WWW-Authenticate"]
    assert program.rpc("ping") == {}


def test_refresh_token_used_again_revokes_the_whole_chain(simulator: Simulator, program: Program) -> None:
    """The newest tokens too; another sign-in is not touched."""
    other = Program(program.url).sign_in()
    program.sign_in()
    first = program.tokens["refresh_token"]
    program.refresh()
    newest = program.tokens["refresh_token"]

    reused = program.refresh(first)

    assert (reused.status_code, reused.json()["error"]) == (400, "invalid_grant")
    assert program.refresh(newest).json()["error"] == "invalid_grant"
    assert program.post("ping").status_code == 401
    assert other.rpc("ping") == {}
    assert [(each.revoked, each.reuses, len(each.refreshes)) for each in simulator.sign_ins] == [
        (False, 0, 0),
        (True, 1, 1),
    ]
    other.close()


def test_of_many_refreshes_at_once_one_succeeds(simulator: Simulator, program: Program) -> None:
    """The others are reuses, and so nothing is left."""
    program.sign_in()
    token = program.tokens["refresh_token"]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: program.refresh(token).status_code, range(8)))

    assert sorted(answers) == [200] + [400] * 7
    assert (simulator.sign_ins[0].revoked, len(simulator.sign_ins[0].refreshes)) == (True, 1)


def test_lost_answer_of_a_refresh_uses_the_token_up(simulator: Simulator, program: Program) -> None:
    """Accepted and cut: the next attempt with the same token is a reuse. Cut before: it is not."""
    program.sign_in()
    token = program.tokens["refresh_token"]
    simulator.script(path="/oauth/token", faults=[Fault.drop_before_acceptance(), None, Fault.drop_after_acceptance()])

    with pytest.raises(httpx.RemoteProtocolError):
        program.refresh(token)
    assert program.refresh(token).status_code == 200
    token = program.tokens["refresh_token"]
    with pytest.raises(httpx.RemoteProtocolError):
        program.refresh(token)

    assert program.refresh(token).json()["error"] == "invalid_grant"
    assert simulator.sign_ins[0].revoked


def test_refresh_token_is_good_for_its_own_client_only(program: Program) -> None:
    """Another program cannot use it, and does no harm by trying."""
    program.sign_in()
    other = Program(program.url)
    other.register()

    assert other.refresh(program.tokens["refresh_token"]).json()["error"] == "invalid_grant"
    assert other.post_form("/oauth/revoke", token=program.tokens["refresh_token"]).status_code == 200
    assert program.refresh().status_code == 200
    other.close()


def test_revoking_the_refresh_token_ends_the_sign_in(program: Program) -> None:
    """RFC 7009; a token that is not known is no error."""
    program.sign_in()

    assert program.post_form("/oauth/revoke", token=program.tokens["refresh_token"]).status_code == 200
    assert program.post("ping").status_code == 401
    assert program.refresh().json()["error"] == "invalid_grant"
    assert program.post_form("/oauth/revoke", token="halo_rt_example_unknown").status_code == 200
    assert program.post_form("/oauth/revoke").json()["error"] == "invalid_request"


def test_revoking_the_access_token_leaves_the_refresh_token(program: Program) -> None:
    """The program can go on with a refresh."""
    program.sign_in()
    program.post_form("/oauth/revoke", token=program.tokens["access_token"])

    assert program.post("ping").status_code == 401
    program.refresh()
    assert program.rpc("ping") == {}


def test_there_is_no_grant_for_machines(program: Program) -> None:
    """Halo has no client credentials."""
    program.register()

    assert program.token(grant_type="client_credentials").json()["error"] == "unsupported_grant_type"


def test_client_without_refresh_gets_no_refresh_token(program: Program) -> None:
    """It registered for codes only."""
    program.register(grant_types=["authorization_code"])
    program.exchange(answered(program.decide(program.ask()))["code"])

    assert "refresh_token" not in program.tokens
    assert program.refresh("halo_rt_example").json()["error"] == "unauthorized_client"


def test_sign_ins_can_be_ended_from_outside(simulator: Simulator, program: Program) -> None:
    """Access tokens alone, or everything; in Python and by other processes."""
    program.sign_in()
    simulator.expire_access_tokens()
    expired = program.post("ping").status_code
    program.refresh()
    refreshed = program.post("ping").status_code
    program.web.post("/_simulator/sign-ins", json={"action": "expire_access_tokens"})
    again = program.post("ping").status_code
    program.web.post("/_simulator/sign-ins", json={"action": "revoke"})

    assert (expired, refreshed, again) == (401, 200, 401)
    assert program.refresh().json()["error"] == "invalid_grant"


def test_records_hold_no_secret(simulator: Simulator, program: Program) -> None:
    """Neither those in Python nor the state for other processes has a token, a code or a secret."""
    program.auth_method = "client_secret_post"
    program.sign_in()
    program.refresh()
    program.rpc("ping")

    told = f"{simulator.reads}{simulator.sign_ins}{program.web.get('/_simulator/state').text}"

    assert [record.path for record in simulator.reads] == [
        "/oauth/register",
        "/oauth/authorize",
        "/oauth/authorize",
        "/oauth/token",
        "/oauth/token",
        "/api/mcp/ping",
    ]
    assert '"refreshes":1' in told
    for secret in (*program.tokens.values(), program.client["client_secret"], program.verifier):
        if isinstance(secret, str) and len(secret) > 20:
            assert secret not in told


def test_wrong_forms_are_refused(program: Program) -> None:
    """JSON for a form, a parameter twice, a method that is not there."""
    program.register()
    as_json = program.web.post("/oauth/token", json={"grant_type": "refresh_token"})
    twice = program.web.post(
        "/oauth/token",
        content="grant_type=refresh_token&grant_type=refresh_token",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    got = program.web.get("/oauth/token")

    assert (as_json.status_code, twice.status_code) == (400, 400)
    assert as_json.json()["error"] == twice.json()["error"] == "invalid_request"
    assert (got.status_code, got.headers["Allow"]) == (405, "POST")
    assert program.register(redirect_uris=[REDIRECT]).headers["Cache-Control"] == "no-store"
